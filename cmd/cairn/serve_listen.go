package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// listening is where serve takes connections.
type listening struct {
	addresses  []string
	socketMode modeFlag
	printURIs  bool
	silent     bool // unless the user wants URIs, since the sockets were handed over by who knows them
}

func (f *listening) add(c *cobra.Command) {
	f.socketMode = 0o600
	c.Flags().StringArrayVar(&f.addresses, "listen", nil,
		"`address` to listen on: unix:PATH or tcp:HOST:PORT; repeatable (default: a unix socket in the runtime directory)")
	c.Flags().Var(&f.socketMode, "socket-mode", "permissions of unix sockets; who may write may connect")
	c.Flags().BoolVar(&f.printURIs, "print-uri", true,
		"print the exports' URIs on stdout, and nothing else (default: unless the sockets were inherited)")
	c.Flags().Lookup("print-uri").DefValue = "" // the help says it in words
	check(c, func([]string) error {
		for _, address := range f.addresses {
			if _, err := parseAddress(address); err != nil {
				return fmt.Errorf("--listen %s: %w", address, err)
			}
		}
		f.silent = !c.Flags().Changed("print-uri")
		return nil
	})
}

// modeFlag is a flag that takes permissions in octal.
type modeFlag fs.FileMode

func (f *modeFlag) String() string { return fmt.Sprintf("%#o", uint32(*f)) }
func (f *modeFlag) Type() string   { return "mode" }

func (f *modeFlag) Set(text string) error {
	n, err := strconv.ParseUint(text, 8, 9)
	if err != nil {
		return fmt.Errorf("%q is not a mode (such as 0600, 0660)", text)
	}
	*f = modeFlag(n)
	return nil
}

// open returns the sockets that were handed over and opens those of --listen, or, when there are neither, one in a
// new private directory. The function it returns removes that.
func (f *listening) open(ctx context.Context) (listeners []net.Listener, cleanUp func(), err error) {
	listeners, err = inherited()
	if err != nil {
		return nil, nil, err
	}
	f.printURIs = f.printURIs && (len(listeners) == 0 || !f.silent)
	cleanUp = func() {}
	addresses := f.addresses
	if len(listeners) == 0 && len(addresses) == 0 {
		dir, err := socketDir()
		if err != nil {
			return nil, nil, err
		}
		cleanUp = func() { _ = os.Remove(dir) }
		addresses = []string{"unix:" + filepath.Join(dir, "nbd.sock")}
	}
	opened, err := listenAll(ctx, addresses, fs.FileMode(f.socketMode))
	if err != nil {
		closeAll(listeners)
		cleanUp()
		return nil, nil, err
	}
	return append(listeners, opened...), cleanUp, nil
}

// listenAll opens all addresses, or none.
func listenAll(ctx context.Context, addresses []string, mode fs.FileMode) ([]net.Listener, error) {
	var listeners []net.Listener
	for _, address := range addresses {
		opened, err := listen(ctx, address, mode)
		if err != nil {
			closeAll(listeners)
			return nil, fmt.Errorf("listening on %s: %w", address, err)
		}
		listeners = append(listeners, opened...)
	}
	return listeners, nil
}

func closeAll(listeners []net.Listener) {
	for _, l := range listeners {
		_ = l.Close()
	}
}

// socketDir is a new directory for a socket, in the user's runtime directory.
func socketDir() (string, error) {
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if dir == "" {
		dir = os.TempDir()
	}
	dir, err := os.MkdirTemp(dir, "cairn-")
	if err != nil {
		return "", fmt.Errorf("making a directory for the socket: %w", err)
	}
	return dir, nil
}

// listen opens an address: one listener for each address that a host's name has.
func listen(ctx context.Context, text string, mode fs.FileMode) ([]net.Listener, error) {
	a, err := parseAddress(text)
	if err != nil {
		return nil, err
	}
	if a.network == "tcp" {
		return listenTCP(ctx, a.at)
	}
	l, err := listenUnix(ctx, a.at, mode)
	if err != nil {
		return nil, err
	}
	return []net.Listener{l}, nil
}

// listenUnix takes the place of a socket whose server is gone. The directory is locked meanwhile, or of two servers
// that start at once one would remove the other's new socket.
func listenUnix(ctx context.Context, at string, mode fs.FileMode) (net.Listener, error) {
	if dir, err := os.Open(filepath.Dir(at)); err == nil {
		defer dir.Close()
		lockSocketDir(ctx, dir)
	}
	l, err := bindUnix(at, mode)
	if !errors.Is(err, syscall.EADDRINUSE) {
		return l, err
	}
	switch info, statErr := os.Lstat(at); {
	case statErr == nil && info.Mode().Type() != fs.ModeSocket:
		return nil, errors.New("there is a file of that name already, and it is no socket")
	case !abandoned(at):
		return nil, err
	}
	if err := os.Remove(at); err != nil {
		return nil, err
	}
	return bindUnix(at, mode)
}

// lockSocketDir locks a socket's directory until it is closed. Another server holds the lock for a moment. Others, such as
// the flock(1) that started this one, may hold it for ever. Where there is no lock to be had, there is that race.
func lockSocketDir(ctx context.Context, dir *os.File) {
	const patience, pause = 2 * time.Second, 10 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for ctx.Err() == nil {
		if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
			return
		}
		time.Sleep(pause)
	}
}

// bindUnix makes a socket with these permissions. Linux gives a socket's file the mode that the descriptor has, less
// the umask: so there is no moment at which others may connect that should not.
func bindUnix(at string, mode fs.FileMode) (net.Listener, error) {
	if err := checkSocketPath(at); err != nil {
		return nil, err
	}
	narrow := func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), uint32(mode.Perm())) }); e != nil {
			return e
		}
		return err
	}
	l, err := (&net.ListenConfig{Control: narrow}).Listen(context.Background(), "unix", at)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(at, mode.Perm()); err != nil { // what the umask took away
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

// abandoned says whether at is a socket that nobody listens on.
func abandoned(at string) bool {
	info, err := os.Lstat(at)
	if err != nil || info.Mode().Type() != os.ModeSocket {
		return false
	}
	conn, err := net.DialTimeout("unix", at, time.Second)
	if err == nil {
		conn.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// inherited returns the sockets that systemd, or a client in its place, has handed over (sd_listen_fds(3)). They
// are not passed on: the environment's variables are unset, and the descriptors closed on exec.
func inherited() ([]net.Listener, error) {
	const first = 3 // SD_LISTEN_FDS_START
	pid, count := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(name) // it fails only for names that are none
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
		l, err := adopt(fd)
		if err != nil {
			closeAll(listeners)
			return nil, fmt.Errorf("taking over file descriptor %d: %w", fd, err)
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}

// adopt makes a listener of a descriptor, which it closes.
func adopt(fd int) (net.Listener, error) {
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

// warnOfExposure warns of listeners that let more clients in than their owner may know.
func warnOfExposure(listeners []net.Listener, secure bool) {
	for _, l := range listeners {
		switch at := l.Addr(); {
		case servesOthers(at) && !secure:
			say("warning: %v takes clients of other machines, without TLS: whoever reaches it can read the images (--tls-cert)", at)
		case at.Network() == "unix" && !hasPath(at):
			say("warning: the socket %v has no permissions: every user of this machine can read the images", at)
		}
	}
}

// hasPath reports whether a unix socket is a file. One that was handed over may be another kind.
func hasPath(at net.Addr) bool { return at.String() != "" && at.String()[0] != '@' }

func printURIs(w io.Writer, listeners []net.Listener, names []string, secure bool) {
	for _, l := range listeners {
		for _, name := range names {
			if uri := exportURI(l.Addr(), name, secure); uri != "" {
				fmt.Fprintln(w, uri)
			}
		}
	}
}

// exportURI is the export's address as NBD clients take it (NetworkBlockDevice/nbd, doc/uri.md), or "" if no URI can
// say it.
func exportURI(at net.Addr, name string, secure bool) string {
	scheme := "nbd"
	if secure {
		scheme = "nbds"
	}
	if at.Network() != "unix" {
		host := url.URL{Host: at.String()}
		return scheme + ":" + host.String() + "/" + escapeURI(name)
	}
	if !hasPath(at) {
		return ""
	}
	path, err := filepath.Abs(at.String())
	if err != nil {
		path = at.String()
	}
	return scheme + "+unix:///" + escapeURI(name) + "?socket=" + escapeURI(path)
}

// escapeURI escapes all that means something in any part of a URI, but for the slash. Clients differ in what they take
// for a separator, and do not take + for a space.
func escapeURI(text string) string {
	return strings.NewReplacer("+", "%20", "%2F", "/").Replace(url.QueryEscape(text))
}
