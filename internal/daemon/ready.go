package daemon

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"cairn/internal/atomicfile"
)

// BeginReady writes the pid file, unless its path is "". It notifies the service manager that
// clients can connect, and when ctx ends that the server stops. It calls failed if a notification
// fails. end removes the pid file.
func BeginReady(
	ctx context.Context, manager *Notifier, pidFile string, failed func(state string, err error),
) (end func(), err error) {
	remove := func() {}
	if pidFile != "" {
		if remove, err = writePID(pidFile); err != nil {
			return nil, err
		}
	}
	notify := func(state string) {
		if err := manager.Notify(state); err != nil {
			failed(state, err)
		}
	}
	notify("READY=1")
	stopping := make(chan struct{})
	cancelStopping := context.AfterFunc(ctx, func() {
		defer close(stopping)
		notify("STOPPING=1")
	})
	return func() {
		if !cancelStopping() {
			<-stopping
		}
		remove()
	}, nil
}

// writePID writes the process id to a file. remove removes the file, unless it has another
// process's id by then.
func writePID(path string) (remove func(), err error) {
	path, err = filepath.Abs(path)
	if err == nil {
		path, err = atomicfile.Resolve(path) // remove must remove the file, not a link to it
	}
	if err != nil {
		return nil, err
	}
	pid := strconv.Itoa(os.Getpid())
	remove = func() {
		text, err := readRegular(path)
		if err == nil && strings.TrimSpace(string(text)) == pid {
			_ = os.Remove(path) // a stale file does little harm
		}
	}
	return remove, atomicfile.Write(path, fmt.Appendln(nil, pid), 0o644)
}

// readRegular reads a short regular file. It does not block if another kind of file has the name by
// now.
func readRegular(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	return io.ReadAll(io.LimitReader(f, 64))
}

// Notifier sends states to the service manager (sd_notify(3)).
type Notifier struct {
	conn *net.UnixConn // nil without a service manager
	err  error         // of opening conn
}

// OpenNotifier opens the socket that NOTIFY_SOCKET names. Without that variable, the Notifier sends nothing. An error is
// returned by Notify.
func OpenNotifier() *Notifier {
	at := os.Getenv("NOTIFY_SOCKET")
	if at == "" {
		return new(Notifier)
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: at, Net: "unixgram"})
	return &Notifier{conn, err}
}

// Notify sends a state.
func (n *Notifier) Notify(state string) error {
	if n.conn == nil {
		return n.err
	}
	_, err := n.conn.Write([]byte(state))
	return err
}
