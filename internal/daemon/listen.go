// Package daemon connects a server process to its environment: listening sockets, its own or
// inherited, a pid file, the service manager, and the parent process. It knows nothing of what is
// served.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"cairn/internal/owndir"
)

// Listen listens on all addresses, or fails and listens on none. A host name has one listener for
// each of its addresses. Unix sockets get the permissions of mode.
func Listen(ctx context.Context, mode fs.FileMode, addresses ...Address) ([]net.Listener, error) {
	var listeners []net.Listener
	for _, a := range addresses {
		var opened []net.Listener
		var err error
		if a.Network == "tcp" {
			opened, err = listenTCP(ctx, a.At)
		} else {
			opened = make([]net.Listener, 1)
			opened[0], err = listenUnix(ctx, a.At, mode)
		}
		if err != nil {
			CloseAll(listeners)
			return nil, fmt.Errorf("listening on %s: %w", a, err)
		}
		listeners = append(listeners, opened...)
	}
	return listeners, nil
}

// ListenPrivately listens on a unix socket in a new directory below the user's runtime directory.
// remove removes the directory after the listener is closed.
func ListenPrivately(ctx context.Context, mode fs.FileMode) (listeners []net.Listener, remove func(), err error) {
	parent := os.Getenv("XDG_RUNTIME_DIR")
	if parent == "" {
		parent = os.TempDir()
	}
	dir, err := os.MkdirTemp(parent, "cairn-")
	if err != nil {
		return nil, nil, fmt.Errorf("making a directory for the socket: %w", err)
	}
	remove = func() { _ = os.Remove(dir) }
	listeners, err = Listen(ctx, mode, Address{"unix", filepath.Join(dir, "nbd.sock")})
	if err != nil {
		remove()
	}
	return listeners, remove, err
}

// CloseAll closes listeners.
func CloseAll(listeners []net.Listener) {
	for _, l := range listeners {
		_ = l.Close()
	}
}

// listenUnix listens on a unix socket, and replaces an abandoned one. Other users must not be able to
// replace the socket, so its directory must be one that owndir accepts.
func listenUnix(ctx context.Context, at string, mode fs.FileMode) (net.Listener, error) {
	if err := checkSocketPath(at); err != nil {
		return nil, err
	}
	dir, err := owndir.Open(filepath.Dir(at))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	unlock, err := lockSocket(ctx, dir, filepath.Base(at))
	if err != nil {
		return nil, err
	}
	defer unlock()
	l, err := bindUnix(dir, at, mode)
	if !errors.Is(err, syscall.EADDRINUSE) {
		return l, err
	}
	if err := removeAbandoned(dir, at); err != nil {
		return nil, err
	}
	return bindUnix(dir, at, mode)
}

// removeAbandoned removes a socket without a server. It returns syscall.EADDRINUSE if there is one.
func removeAbandoned(dir *os.Root, at string) error {
	name := filepath.Base(at)
	switch info, err := dir.Lstat(name); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("a file of that name exists and is not a socket")
	case !isAbandoned(at):
		return syscall.EADDRINUSE
	}
	return dir.Remove(name)
}

// lockSocket locks the name of a socket. Of two servers that start at once, one could otherwise remove
// the other's new socket. It locks a file that only this user and root can open, and not the
// directory, which any user who may read it can lock. A server holds the lock briefly, unless it is
// stopped. So after 2 s lockSocket returns without the lock, and the race remains.
func lockSocket(ctx context.Context, dir *os.Root, socket string) (unlock func(), err error) {
	const patience, pause = 2 * time.Second, 10 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	name := "." + socket + ".lock"
	for {
		f, err := owndir.OpenFile(dir, name, os.O_RDWR|os.O_CREATE)
		if err != nil {
			return nil, err
		}
		unlock := func() { _ = errors.Join(dir.Remove(name), f.Close()) }
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && hasName(dir, name, f) {
			return unlock, nil
		}
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			return unlock, nil // the file system has no locks
		}
		f.Close()
		if ctx.Err() != nil {
			return func() {}, nil
		}
		time.Sleep(pause)
	}
}

// hasName reports whether f still has its name. The last holder of the lock removed the file.
func hasName(dir *os.Root, name string, f *os.File) bool {
	mine, err1 := f.Stat()
	there, err2 := dir.Lstat(name)
	return err1 == nil && err2 == nil && os.SameFile(mine, there)
}

// bindUnix listens on a new socket with these permissions. Linux gives a socket's file the mode of
// the descriptor, without the bits of the umask. So the file is never open to more users than mode
// allows.
func bindUnix(dir *os.Root, at string, mode fs.FileMode) (net.Listener, error) {
	setMode := func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), uint32(mode.Perm())) }); e != nil {
			return e
		}
		return err
	}
	l, err := (&net.ListenConfig{Control: setMode}).Listen(context.Background(), "unix", at)
	if err != nil {
		return nil, err
	}
	if err := dir.Chmod(filepath.Base(at), mode.Perm()); err != nil { // restores the bits of the umask
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

// isAbandoned reports whether a socket refuses connections, because it has no listener.
func isAbandoned(at string) bool {
	conn, err := net.DialTimeout("unix", at, time.Second)
	if err == nil {
		conn.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// Inherited returns the sockets that systemd, or another program in its place, has passed to this
// process (sd_listen_fds(3)). It unsets the environment variables and sets the descriptors to close
// on exec, so that child processes do not inherit them.
func Inherited() ([]net.Listener, error) {
	const first = 3 // SD_LISTEN_FDS_START
	pid, count := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(name) // fails only for invalid names
	}
	if pid != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 || n > 1024 {
		return nil, fmt.Errorf("LISTEN_FDS is %q, want the number of sockets that are handed over", count)
	}
	var listeners []net.Listener
	for fd := first; fd < first+n; fd++ {
		l, err := listenerFromFD(fd)
		if err != nil {
			CloseAll(listeners)
			return nil, fmt.Errorf("taking over file descriptor %d: %w", fd, err)
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}

// listenerFromFD returns a listener for a descriptor, and closes the descriptor.
func listenerFromFD(fd int) (net.Listener, error) {
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return nil, err
	}
	if listens == 0 {
		return nil, errors.New("it is not a listening socket (for systemd: Accept=no)")
	}
	return net.FileListener(f)
}
