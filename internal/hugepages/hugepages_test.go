package hugepages

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"
)

// TestHeap: the next allocations have the kernel's advice, and Heap keeps nothing allocated.
func TestHeap(t *testing.T) {
	if affordableBytes(64<<20) == 0 {
		t.Skip("huge pages are not asked for here")
	}
	if _, err := os.Stat("/sys/kernel/mm/transparent_hugepage"); err != nil {
		t.Skip("the kernel knows no huge pages")
	}
	Heap(64 << 20)
	var m runtime.MemStats
	if runtime.ReadMemStats(&m); m.HeapAlloc > 32<<20 {
		t.Errorf("%d bytes stay allocated", m.HeapAlloc)
	}
	var advised int
	pieces := make([][]byte, 32)
	for i := range pieces {
		pieces[i] = make([]byte, 1<<20)
		if slices.Contains(flags(t, uintptr(unsafe.Pointer(&pieces[i][0]))), "hg") {
			advised++
		}
	}
	if advised < len(pieces)*3/4 {
		t.Errorf("the advice holds for %d of %d pieces", advised, len(pieces))
	}
	runtime.KeepAlive(pieces)
}

// flags returns the VmFlags of the mapping with an address; see proc_pid_smaps(5).
func flags(t *testing.T, address uintptr) []string {
	t.Helper()
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Skip(err)
	}
	inside := false
	for line := range strings.Lines(string(smaps)) {
		var from, to uintptr
		if n, _ := fmt.Sscanf(line, "%x-%x ", &from, &to); n == 2 {
			inside = from <= address && address < to
		}
		if words, ok := strings.CutPrefix(line, "VmFlags:"); ok && inside {
			return strings.Fields(words)
		}
	}
	t.Fatalf("there is no mapping at %x", address)
	return nil
}
