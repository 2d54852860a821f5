package main

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestWarnOfExposure warns of sockets without permissions or TLS. Only a service manager can pass an abstract socket.
func TestWarnOfExposure(t *testing.T) {
	defer func() { stderr = os.Stderr }()
	for _, tc := range []struct {
		network, at string
		tls         bool
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
		var messages bytes.Buffer
		stderr = &messages
		warnOfExposure([]net.Listener{l}, tc.tls)
		l.Close()
		if text := messages.String(); !strings.Contains(text, tc.want) || (text == "") != (tc.want == "") {
			t.Errorf("%s:%s, TLS %v: %q, want %q", tc.network, tc.at, tc.tls, text, tc.want)
		}
	}
}
