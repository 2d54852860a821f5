// Package hugepages requests huge pages for the Go heap.
package hugepages

import (
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hugePageSize is the size of a huge page in bytes, on machines with the usual pages of 4 KiB.
const hugePageSize = 2 << 20

// Heap requests huge pages for the next n bytes by which the Go heap grows. A short program pays for
// each page at its first touch. This costs most in a virtual machine whose host has to find the page
// too. Heap touches no page and keeps nothing allocated. It does nothing where there are no huge pages,
// or where a request of that size could fail.
//
// The runtime has no interface for this. But it reuses freed addresses before it requests more from the
// kernel, and the kernel's advice stays with the addresses.
func Heap(n int64) {
	n = affordableBytes(n)
	if n <= 0 {
		return
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // one collection is enough
	if adviseHuge(make([]byte, n)) {
		runtime.GC() // frees the bytes; the next collection would be late, since the heap was large
	}
}

// affordableBytes returns how many of n bytes can be requested without the risk of a refusal, which would end
// the program. This is at most a quarter of the machine's memory, or 0 where the kernel limits requests.
func affordableBytes(n int64) int64 {
	if runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		return 0 // other sizes of pages, or few addresses
	}
	var info unix.Sysinfo_t
	var space unix.Rlimit
	if unix.Sysinfo(&info) != nil || unix.Getrlimit(unix.RLIMIT_AS, &space) != nil || space.Cur != unix.RLIM_INFINITY {
		return 0
	}
	mode, err := os.ReadFile("/proc/sys/vm/overcommit_memory") // 2 is strict: proc_sys_vm(5)
	if err != nil || strings.TrimSpace(string(mode)) == "2" {
		return 0
	}
	return min(n, int64(info.Totalram)*int64(info.Unit)/4)
}

// adviseHuge reports whether the kernel took the advice for p. It does not touch p.
func adviseHuge(p []byte) bool {
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(p)))) & (hugePageSize - 1)
	if len(p) < skip+hugePageSize {
		return false
	}
	p = p[skip:]
	return unix.Madvise(p[:len(p)&^(hugePageSize-1)], unix.MADV_HUGEPAGE) == nil
}
