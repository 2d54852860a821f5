//go:build amd64 || arm64

package hugepages

import (
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// size is that of a huge page, on machines with the usual pages of 4 KiB.
const size = 2 << 20

// affordable is how many of n bytes may be asked for without fear of a refusal, which would be the end of the program:
// a quarter of the machine's memory, or nothing where it is counted strictly.
func affordable(n int64) int64 {
	var info unix.Sysinfo_t
	var space unix.Rlimit
	if unix.Sysinfo(&info) != nil || unix.Getrlimit(unix.RLIMIT_AS, &space) != nil || space.Cur != unix.RLIM_INFINITY {
		return 0
	}
	mode, err := os.ReadFile("/proc/sys/vm/overcommit_memory") // proc_sys_vm(5): 2 is strictly
	if err != nil || strings.TrimSpace(string(mode)) == "2" {
		return 0
	}
	return min(n, int64(info.Totalram)*int64(info.Unit)/4)
}

// advise says whether the kernel has taken the advice. p is not touched.
func advise(p []byte) bool {
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(p)))) & (size - 1)
	if len(p) < skip+size {
		return false
	}
	p = p[skip:]
	return unix.Madvise(p[:len(p)&^(size-1)], unix.MADV_HUGEPAGE) == nil
}
