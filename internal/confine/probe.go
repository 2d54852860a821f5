package confine

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// probe is the first argument of a process that confines itself, and does nothing else.
const probe = "cairn-confine-probe"

// IsProbe reports whether this process is a probe, and must call RunProbe.
func IsProbe() bool { return len(os.Args) == 1 && os.Args[0] == probe }

// RunProbe confines this process. It may be killed.
func RunProbe() {
	_, _ = Calls(Policy{}), Files(Policy{})
}

// Permitted returns an ErrUnsupported if the process was started with a filter of system calls that kills it when it
// confines itself, as systemd's SystemCallFilter= does. If there is a filter, a probe finds out.
func Permitted() error {
	const filtered = 2 // seccomp(2): SECCOMP_MODE_FILTER
	if mode, err := unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0); err != nil || mode != filtered {
		return nil
	}
	err := (&exec.Cmd{Path: "/proc/self/exe", Args: []string{probe}}).Run()
	if exit, is := errors.AsType[*exec.ExitError](err); is {
		if status, is := exit.Sys().(syscall.WaitStatus); is && status.Signal() == syscall.SIGSYS {
			return fmt.Errorf("%w: a filter of system calls forbids it, such as SystemCallFilter= of systemd", ErrUnsupported)
		}
	}
	if err != nil {
		return fmt.Errorf("%w: trying it in another process: %w", ErrUnsupported, err)
	}
	return nil
}
