package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// errParentGone is the cause of a context that ended with the parent process.
var errParentGone = errors.New("the parent process has ended")

// WithParent returns a context that ends with the parent process.
func WithParent(ctx context.Context) (context.Context, context.CancelFunc, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	parent, err := openParent()
	switch {
	case errors.Is(err, errParentGone):
		cancel(err)
	case err != nil:
		cancel(nil)
		return nil, nil, fmt.Errorf("watching the parent process: %w", err)
	default:
		go func() {
			if awaitExit(ctx, parent) {
				cancel(errParentGone)
			}
			_ = unix.Close(parent)
		}()
	}
	return ctx, func() { cancel(nil) }, nil
}

// openParent returns a pidfd of the parent process. PR_SET_PDEATHSIG would be shorter, but it
// signals the end of the parent's thread that started this process, and the parent may continue.
func openParent() (int, error) {
	pid := os.Getppid()
	if pid == 1 && !isContained() {
		return -1, errParentGone // init has adopted this process
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return -1, errParentGone
	}
	if err != nil {
		return -1, err
	}
	if os.Getppid() != pid { // the parent has ended, and the descriptor may be of another process
		_ = unix.Close(fd)
		return -1, errParentGone
	}
	return fd, nil
}

// isContained reports whether this is a container. There the parent may be process 1, and when it
// ends the kernel ends all processes of the container.
func isContained() bool {
	const initial = "pid:[4026531836]" // PROC_PID_INIT_INO
	namespace, err := os.Readlink("/proc/self/ns/pid")
	return err == nil && namespace != initial
}

// awaitExit blocks until a process or the context has ended. It reports whether the process has
// ended.
func awaitExit(ctx context.Context, pidfd int) bool {
	const tick = 500 // ms between checks of the context
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, tick)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return false
		}
		if n > 0 {
			return true
		}
	}
	return false
}
