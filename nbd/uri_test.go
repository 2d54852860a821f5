package nbd_test

import (
	"net"
	"os"
	"testing"

	"cairn/nbd"
)

func TestURI(t *testing.T) {
	unix, tcp := &net.UnixAddr{Name: "/run/a b", Net: "unix"}, &net.TCPAddr{IP: net.IPv6loopback, Port: 1}
	odd, abstract := &net.UnixAddr{Name: "/a&b;c%d?e#f+g=h:@,ü", Net: "unix"}, &net.UnixAddr{Name: "@a", Net: "unix"}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		at   net.Addr
		tls  bool
		want string
	}{
		{unix, false, "nbd+unix:///x%20y?socket=/run/a%20b"}, {unix, true, "nbds+unix:///x%20y?socket=/run/a%20b"},
		{tcp, false, "nbd://[::1]:1/x%20y"}, {tcp, true, "nbds://[::1]:1/x%20y"},
		{odd, false, "nbd+unix:///x%20y?socket=/a%26b%3Bc%25d%3Fe%23f%2Bg%3Dh%3A%40%2C%C3%BC"},
		{&net.UnixAddr{Name: "s", Net: "unix"}, false, "nbd+unix:///x%20y?socket=" + here + "/s"},
		{abstract, false, ""},
	} {
		if got := nbd.URI(tc.at, "x y", tc.tls); got != tc.want {
			t.Errorf("URI(%v, %v) = %s, want %s", tc.at, tc.tls, got, tc.want)
		}
	}
}
