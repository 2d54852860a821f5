package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"cairn/internal/atomicfile"
)

// life is how serve begins and ends in the eyes of whoever runs it.
type life struct {
	pidfile  string
	withExit bool
}

func (f *life) add(c *cobra.Command) {
	c.Flags().StringVar(&f.pidfile, "pidfile", "", "`file` to write the process id to when clients can connect; removed at the end")
	c.Flags().BoolVar(&f.withExit, "exit-with-parent", false, "stop when the process that started this one has ended")
}

// errParentGone is why a context ends whose process was to end with its parent.
var errParentGone = errors.New("the parent process has ended")

// follow is a context that ends with the parent process, if that is wanted.
func (f *life) follow(ctx context.Context) (context.Context, context.CancelFunc, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := func() { cancel(nil) }
	if !f.withExit {
		return ctx, stop, nil
	}
	parent, err := openParent()
	if errors.Is(err, errParentGone) {
		cancel(err)
		return ctx, stop, nil
	}
	if err != nil {
		cancel(nil)
		return nil, nil, fmt.Errorf("watching the parent process: %w", err)
	}
	go func() {
		if awaitExit(ctx, parent) {
			cancel(errParentGone)
		}
		_ = unix.Close(parent)
	}()
	return ctx, stop, nil
}

// openParent returns a descriptor of the parent process. PR_SET_PDEATHSIG would be shorter, but it strikes when the
// parent's thread ends that started us, and the parent may well go on.
func openParent() (int, error) {
	pid := os.Getppid()
	if pid == 1 && !contained() {
		return -1, errParentGone // init has taken us over
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return -1, errParentGone
	}
	if err != nil {
		return -1, err
	}
	if os.Getppid() != pid { // it ended meanwhile, and the descriptor may be that of any other process
		_ = unix.Close(fd)
		return -1, errParentGone
	}
	return fd, nil
}

// contained says whether this is a container, whose first process may have started us, and when it ends the kernel
// ends all.
func contained() bool {
	const initial = "pid:[4026531836]" // PROC_PID_INIT_INO
	namespace, err := os.Readlink("/proc/self/ns/pid")
	return err == nil && namespace != initial
}

// awaitExit waits until a process has ended, and says so, or until the context ends.
func awaitExit(ctx context.Context, pidfd int) bool {
	const tick = 500 // ms between looks at the context
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

// begin tells the world that clients can connect, and when ctx ends that they cannot any more. The function it
// returns takes back what is left of that.
func (f *life) begin(ctx context.Context) (end func(), err error) {
	if f.pidfile != "" {
		if err := f.writePID(); err != nil {
			return nil, err
		}
	}
	tell := func(state string) {
		if err := notify(state); err != nil {
			say("warning: telling the service manager %s: %v", state, err)
		}
	}
	tell("READY=1")
	told := make(chan struct{})
	keepQuiet := context.AfterFunc(ctx, func() {
		defer close(told)
		tell("STOPPING=1")
	})
	return func() {
		if !keepQuiet() {
			<-told
		}
		f.removePID()
	}, nil
}

func (f *life) writePID() error {
	at, err := filepath.Abs(f.pidfile)
	if err == nil {
		at, err = atomicfile.Resolve(at) // what is removed in the end is the file, not a link to it
	}
	if err != nil {
		return err
	}
	f.pidfile = at
	return atomicfile.Write(at, fmt.Appendln(nil, os.Getpid()), 0o644)
}

// removePID removes the file, unless it has become another's.
func (f *life) removePID() {
	text, err := os.ReadFile(f.pidfile)
	if err == nil && strings.TrimSpace(string(text)) == strconv.Itoa(os.Getpid()) {
		_ = os.Remove(f.pidfile) // it is of no use any more, and does little harm
	}
}

// notify tells systemd about this service, if it wants to know (sd_notify(3)).
func notify(state string) error {
	at := os.Getenv("NOTIFY_SOCKET")
	if at == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: at, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte(state))
	return err
}
