package confine

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// HideMemory keeps the memory of this process out of core files, and away from other processes of its user. It is for
// processes that hold keys or passwords.
func HideMemory() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("hiding the memory of the process: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbidding core files: %w", err)
	}
	return nil
}
