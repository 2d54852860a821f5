package main

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestExportURI(t *testing.T) {
	unix, tcp := &net.UnixAddr{Name: "/run/a b", Net: "unix"}, &net.TCPAddr{IP: net.IPv6loopback, Port: 1}
	odd, abstract := &net.UnixAddr{Name: "/a&b;c%d?e#f+g=h:@,ü", Net: "unix"}, &net.UnixAddr{Name: "@a", Net: "unix"}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		at     net.Addr
		secure bool
		want   string
	}{
		{unix, false, "nbd+unix:///x%20y?socket=/run/a%20b"}, {unix, true, "nbds+unix:///x%20y?socket=/run/a%20b"},
		{tcp, false, "nbd://[::1]:1/x%20y"}, {tcp, true, "nbds://[::1]:1/x%20y"},
		{odd, false, "nbd+unix:///x%20y?socket=/a%26b%3Bc%25d%3Fe%23f%2Bg%3Dh%3A%40%2C%C3%BC"},
		{&net.UnixAddr{Name: "s", Net: "unix"}, false, "nbd+unix:///x%20y?socket=" + here + "/s"},
		{abstract, false, ""},
	} {
		if got := exportURI(tc.at, "x y", tc.secure); got != tc.want {
			t.Errorf("exportURI(%v, %v) = %s, want %s", tc.at, tc.secure, got, tc.want)
		}
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
