package main

import "cairn/internal/hugepages"

const (
	workingHeap = 64 << 20 // bytes that the heap grows to in most commands, whatever the image
	perHeap     = 4096     // bytes of image, if it is a hole, whose chunks take one more: 64 for 256 KiB
	longWork    = 64 << 20 // bytes of image for which it is worth some milliseconds to prepare it
)

// prepareHeap is for a command that will go through so many bytes of an image; less than 0 is not known.
func prepareHeap(image int64) {
	if image < 0 || image >= longWork {
		hugepages.Heap(workingHeap + max(image, 0)/perHeap)
	}
}
