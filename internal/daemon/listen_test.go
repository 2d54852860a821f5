package daemon

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"cairn/internal/owndir"
	"cairn/internal/test/need"
)

// TestListenFamilies: a numeric address has one address family, and a name or no host has both.
func TestListenFamilies(t *testing.T) {
	six, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		need.Missing(t, "this machine has no IPv6")
	}
	six.Close()
	for _, tc := range []struct {
		at         string
		four, six  bool
		ofListener int
	}{
		{"tcp:0.0.0.0:0", true, false, 1}, {"tcp:127.0.0.1:0", true, false, 1}, {"tcp:[::ffff:127.0.0.1]:0", true, false, 1},
		{"tcp:[::]:0", false, true, 1}, {"tcp:[::1]:0", false, true, 1},
		{"tcp::0", true, true, 1}, {"tcp:localhost:0", true, true, 2},
	} {
		listeners, err := listenAt(t, tc.at)
		if err != nil {
			t.Fatal(err)
		}
		defer CloseAll(listeners)
		_, port, _ := net.SplitHostPort(listeners[0].Addr().String())
		four, six := connects("127.0.0.1", port), connects("::1", port)
		if len(listeners) != tc.ofListener || four != tc.four || six != tc.six {
			t.Errorf("%s: %d listeners, IPv4 %v, IPv6 %v, want %+v", tc.at, len(listeners), four, six, tc)
		}
	}
}

// listenAt parses an address and listens on it.
func listenAt(t *testing.T, text string) ([]net.Listener, error) {
	t.Helper()
	a, err := ParseAddress(text)
	if err != nil {
		t.Fatal(err)
	}
	return Listen(t.Context(), 0o600, a)
}

func connects(host, port string) bool {
	conn, err := net.Dial("tcp", net.JoinHostPort(host, port))
	if err == nil {
		conn.Close()
	}
	return err == nil
}

// TestListenNameInUse: listening on a name fails if one of its addresses is in use, and leaves no
// listener.
func TestListenNameInUse(t *testing.T) {
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		need.Missing(t, "this machine has no IPv6")
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	if listeners, err := listenAt(t, "tcp:localhost:"+port); err == nil {
		CloseAll(listeners)
		t.Error("listening succeeds although one of two addresses is in use")
	}
	if connects("127.0.0.1", port) {
		t.Error("a listener is left")
	}
}

func TestSocketPathTooLong(t *testing.T) {
	dir, err := os.MkdirTemp("", "s") // t.TempDir may be too long
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, strings.Repeat("x", 107-len(dir)-1))
	listeners, err := listenAt(t, "unix:"+path)
	if err != nil {
		t.Fatal(err)
	}
	CloseAll(listeners)
	if _, err := Listen(t.Context(), 0o600, Address{"unix", path + "x"}); err == nil || !strings.Contains(err.Error(), "at most 107 bytes") {
		t.Errorf("a path of 108 bytes: %v", err)
	}
}

// TestParseAddressPort: an unknown port is an error.
func TestParseAddressPort(t *testing.T) {
	for _, bad := range []string{"tcp:127.0.0.1:65536", "tcp:127.0.0.1:-1", "tcp:127.0.0.1:no-such", "tcp:127.0.0.1:", "tcp:127.0.0.1"} {
		if a, err := ParseAddress(bad); err == nil {
			t.Errorf("%s is %v", bad, a)
		}
	}
}

// TestListenUnixLockedDirectory: a lock on the directory does not delay the start, and no file is left. Any user who
// may read a directory can lock it.
func TestListenUnixLockedDirectory(t *testing.T) {
	path := t.TempDir()
	dir, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		l, err := listenUnix(t.Context(), filepath.Join(path, "s"), 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if took := time.Since(start); took > 0 {
			t.Errorf("listening waited for %v", took)
		}
	})
	if left, err := os.ReadDir(path); err != nil || len(left) != 0 {
		t.Errorf("the directory holds %v, %v", left, err)
	}
}

// TestListenUnixDirectory: a socket is not made where other users could replace it.
func TestListenUnixDirectory(t *testing.T) {
	need.Root(t)
	for name, change := range map[string]func(dir string) error{
		"another user's": func(dir string) error { return os.Chown(dir, 65534, -1) },
		"group writes":   func(dir string) error { return os.Chmod(dir, 0o770) },
		"others write":   func(dir string) error { return os.Chmod(dir, 0o777) },
	} {
		dir := t.TempDir()
		if err := change(dir); err != nil {
			t.Fatal(err)
		}
		l, err := listenUnix(t.Context(), filepath.Join(dir, "s"), 0o600)
		if err == nil {
			l.Close()
		}
		if _, is := errors.AsType[*owndir.Error](err); !is {
			t.Errorf("listening in a directory, %s = %v, want an owndir.Error", name, err)
		}
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	l, err := listenUnix(t.Context(), filepath.Join(dir, "s"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

// TestListenUnixTaken: a file that is not a socket remains, and the error names it.
func TestListenUnixTaken(t *testing.T) {
	at := filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(at, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenUnix(t.Context(), at, 0o600); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("listening where a file is: %v", err)
	}
	if _, err := os.Lstat(at); err != nil {
		t.Error(err)
	}
}

// TestListenUnix: the socket always has its permissions, whatever the umask. Of two servers that
// start at once on a stale socket, one gets it.
func TestListenUnix(t *testing.T) {
	at := filepath.Join(t.TempDir(), "s")
	for _, mode := range []os.FileMode{0o600, 0o660, 0o666} {
		l, err := listenUnix(t.Context(), at, mode)
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Lstat(at); err != nil || info.Mode().Perm() != mode {
			t.Errorf("the socket is %v, %v, want %v", info.Mode(), err, mode)
		}
		l.Close()
	}
	l, err := listenUnix(t.Context(), at, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close() // as a killed server leaves it
	type result struct {
		l   net.Listener
		err error
	}
	results := make(chan result)
	for range 8 {
		go func() {
			l, err := listenUnix(t.Context(), at, 0o600)
			results <- result{l, err}
		}()
	}
	got := 0
	for range 8 {
		switch r := <-results; {
		case r.err == nil:
			got++
			defer r.l.Close()
		case !errors.Is(r.err, syscall.EADDRINUSE):
			t.Error(r.err)
		}
	}
	if got != 1 {
		t.Errorf("%d servers have the socket", got)
	}
}

// TestKeepalive: TCP connections of opened and inherited sockets have keepalives, so that lost
// clients are noticed.
func TestKeepalive(t *testing.T) {
	opened, err := Listen(t.Context(), 0, Address{"tcp", "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	defer CloseAll(opened)
	f, err := opened[0].(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	handed, err := listenerFromFD(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer handed.Close()
	for what, l := range map[string]net.Listener{"opened": opened[0], "handed over": handed} {
		client, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		raw, err := conn.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		on := 0
		if err := raw.Control(func(fd uintptr) { on, err = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_KEEPALIVE) }); err != nil {
			t.Fatal(err)
		}
		if err != nil || on != 1 {
			t.Errorf("%s: keepalive is %d, %v", what, on, err)
		}
	}
}

// TestListenPrivately: the socket has a directory of its own, which remove removes.
func TestListenPrivately(t *testing.T) {
	parent := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", parent)
	listeners, remove, err := ListenPrivately(t.Context(), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(listeners[0].Addr().String())
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 || filepath.Dir(dir) != parent {
		t.Errorf("the directory is %s: %v, %v", dir, info, err)
	}
	CloseAll(listeners)
	remove()
	if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}

// TestInheritedIsForOneProcess: sockets for another process and invalid numbers are refused.
func TestInheritedIsForOneProcess(t *testing.T) {
	pid := strconv.Itoa(os.Getpid())
	for _, tc := range []struct {
		pid, count string
		fails      bool
	}{{"", "", false}, {"1", "1", false}, {pid, "0", false}, {pid, "x", true}, {pid, "-1", true}} {
		t.Setenv("LISTEN_PID", tc.pid)
		t.Setenv("LISTEN_FDS", tc.count)
		listeners, err := Inherited()
		if len(listeners) > 0 || (err != nil) != tc.fails {
			t.Errorf("LISTEN_PID=%s LISTEN_FDS=%s: %v, %v", tc.pid, tc.count, listeners, err)
		}
		if _, set := os.LookupEnv("LISTEN_FDS"); set {
			t.Error("LISTEN_FDS goes to child processes")
		}
	}
}

// TestAdoptRefuses: a descriptor that does not listen is refused.
func TestAdoptRefuses(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	fd, err := syscall.Dup(int(w.Fd()))
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listenerFromFD(fd); err == nil {
		t.Error("a pipe is taken for a listener")
	}
}
