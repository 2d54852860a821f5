package main

import "cairn/internal/hugepages"

const (
	workingHeap = 64 << 20 // bytes that the heap of most commands grows to, whatever the size of the image
	perHeap     = 4096     // bytes of a hole in an image that add a byte to the heap: a chunk of 256 KiB adds 64
	longWork    = 64 << 20 // bytes of an image that take long enough for some milliseconds of preparation
)

// prepareHeap prepares the heap for a job that processes image bytes. A negative number is unknown.
func prepareHeap(image int64) {
	if image < 0 || image >= longWork {
		hugepages.Heap(workingHeap + max(image, 0)/perHeap)
	}
}
