package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/internal/test/need"
)

// TestListenFamilies: a server listens on the address family that it was told, and on both for a name or no host.
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
		listeners, err := listen(t.Context(), tc.at, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer closeAll(listeners)
		_, port, _ := net.SplitHostPort(listeners[0].Addr().String())
		four, six := connects("127.0.0.1", port), connects("::1", port)
		if len(listeners) != tc.ofListener || four != tc.four || six != tc.six {
			t.Errorf("%s: %d listeners, IPv4 %v, IPv6 %v, want %+v", tc.at, len(listeners), four, six, tc)
		}
	}
}

func connects(host, port string) bool {
	conn, err := net.Dial("tcp", net.JoinHostPort(host, port))
	if err == nil {
		conn.Close()
	}
	return err == nil
}

// TestListenNameInUse: a name is not half listened on.
func TestListenNameInUse(t *testing.T) {
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		need.Missing(t, "this machine has no IPv6")
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	if listeners, err := listen(t.Context(), "tcp:localhost:"+port, 0); err == nil {
		closeAll(listeners)
		t.Error("one of two addresses is in use, and the other is listened on")
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
	listeners, err := listen(t.Context(), "unix:"+path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	closeAll(listeners)
	if _, err := listen(t.Context(), "unix:"+path+"x", 0o600); err == nil || !strings.Contains(err.Error(), "at most 107 bytes") {
		t.Errorf("a path of 108 bytes: %v", err)
	}
}

// TestParseAddressPort: a port that there is not is a wrong argument.
func TestParseAddressPort(t *testing.T) {
	for _, bad := range []string{"tcp:127.0.0.1:65536", "tcp:127.0.0.1:-1", "tcp:127.0.0.1:no-such", "tcp:127.0.0.1:", "tcp:127.0.0.1"} {
		if a, err := parseAddress(bad); err == nil {
			t.Errorf("%s is %v", bad, a)
		}
	}
}

// TestListenUnixLockedDirectory: a directory that somebody else has locked for ever, such as the flock(1) that started the
// server, does not keep it from listening, and a signal ends the wait.
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
	ended, end := context.WithCancel(t.Context())
	end()
	l, err := listenUnix(ended, filepath.Join(path, "s"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

// TestListenUnixTaken: what is no socket stays, and is named as the reason.
func TestListenUnixTaken(t *testing.T) {
	at := filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(at, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenUnix(t.Context(), at, 0o600); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("listening where a file is: %v", err)
	}
	if _, err := os.Lstat(at); err != nil {
		t.Error(err)
	}
}

// TestWarnOfExposure: an abstract socket, which only a service manager can hand over, lets everybody on the machine in.
func TestWarnOfExposure(t *testing.T) {
	defer func() { stderr = os.Stderr }()
	for _, tc := range []struct {
		network, at string
		secure      bool
		want        string
	}{
		{"unix", "@cairn-test-" + filepath.Base(t.TempDir()), true, "has no permissions"},
		{"unix", filepath.Join(t.TempDir(), "s"), false, ""},
		{"tcp4", "0.0.0.0:0", false, "without TLS"},
		{"tcp4", "0.0.0.0:0", true, ""},
		{"tcp4", "127.0.0.1:0", false, ""},
	} {
		l, err := net.Listen(tc.network, tc.at)
		if err != nil {
			t.Fatal(err)
		}
		var said bytes.Buffer
		stderr = &said
		warnOfExposure([]net.Listener{l}, tc.secure)
		l.Close()
		if text := said.String(); !strings.Contains(text, tc.want) || (text == "") != (tc.want == "") {
			t.Errorf("%s:%s, TLS %v: %q, want %q", tc.network, tc.at, tc.secure, text, tc.want)
		}
	}
}
