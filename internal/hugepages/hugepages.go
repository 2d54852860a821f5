// Package hugepages gives this program its memory in large pieces.
package hugepages

import (
	"runtime"
	"runtime/debug"
)

// Heap asks the kernel for huge pages under the next n bytes that the Go heap grows by. A program that runs for a second
// pays for each page at its first touch; where the host of a virtual machine has to find the page too, that can be
// most of what it costs. Nothing is touched now, and nothing of it stays allocated. Where there are no huge pages, or where
// so many bytes may not be asked for, nothing happens.
//
// The runtime has no way to say this. But it takes what was freed before it asks the kernel for more, and the advice
// stays with the addresses.
func Heap(n int64) {
	n = affordable(n)
	if n <= 0 {
		return
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // one collection is enough
	if advise(make([]byte, n)) {
		runtime.GC() // frees them. Of itself the next collection would come late, as the heap was large
	}
}
