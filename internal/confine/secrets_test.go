package confine

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHideMemory: after HideMemory, the memory cannot be read by others, and what is open can be opened again.
func TestHideMemory(t *testing.T) {
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Prctl(unix.PR_SET_DUMPABLE, uintptr(dumpable), 0, 0, 0) })
	if err := HideMemory(); err != nil {
		t.Fatal(err)
	}
	if got, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); got != 0 || err != nil {
		t.Errorf("PR_GET_DUMPABLE: %d, %v, want 0", got, err)
	}
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); limit.Cur != 0 || err != nil {
		t.Errorf("RLIMIT_CORE: %+v, %v, want 0", limit, err)
	}
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := reopen(f, os.O_RDONLY); err != nil {
		t.Errorf("opening an open file again: %v", err)
	}
}
