package web_test

import (
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"cairn/internal/transfer"
	"cairn/store"
	"cairn/store/s3"
	"cairn/store/web"
)

// socks starts a SOCKS5 proxy (RFC 1928, 1929) that connects to the same server for every name, and
// demands a password if it is given one. It reports the requested names.
func socks(t *testing.T, to, password string) (address string, names <-chan string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	asked := make(chan string, 100)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if name := greet(conn, password); name != "" {
					asked <- name
					relay(conn, to)
				}
			}()
		}
	}()
	return l.Addr().String(), asked
}

// greet does a handshake, and returns the requested name, or "" if it refuses.
func greet(conn net.Conn, password string) (name string) {
	next := func(n byte) []byte {
		p := make([]byte, n)
		_, _ = io.ReadFull(conn, p) // a short read fails later
		return p
	}
	methods := next(next(2)[1])
	if password == "" {
		conn.Write([]byte{5, 0})
	} else {
		if !strings.Contains(string(methods), "\x02") {
			conn.Write([]byte{5, 0xff})
			return ""
		}
		conn.Write([]byte{5, 2})
		next(next(2)[1]) // the user
		if string(next(next(1)[0])) != password {
			conn.Write([]byte{1, 1})
			return ""
		}
		conn.Write([]byte{1, 0})
	}
	if kind := next(4)[3]; kind != 3 { // 3 is a name, which only the proxy may resolve
		return ""
	}
	name = string(next(next(1)[0]))
	next(2) // the port
	conn.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	return name
}

func relay(conn net.Conn, to string) {
	there, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer there.Close()
	go io.Copy(there, conn)
	io.Copy(conn, there)
}

// TestSOCKS: ALL_PROXY applies to both schemes, and may be a SOCKS5 proxy.
func TestSOCKS(t *testing.T) {
	server := strings.TrimPrefix(serve(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "data") }), "http://")
	open, names := socks(t, server, "")
	guarded, alsoNames := socks(t, server, "hush")
	for name, test := range map[string]struct {
		variables string
		want      error // of reading through it; nil when it works
		proxy     bool  // the error is the proxy's
	}{
		"socks5":          {"ALL_PROXY=socks5://" + open, nil, false},
		"socks5h":         {"ALL_PROXY=socks5h://" + open, nil, false},
		"lower case":      {"all_proxy=socks5://" + open, nil, false},
		"as desktops do":  {"all_proxy=socks://" + open + "/", nil, false},
		"for one scheme":  {"HTTP_PROXY=socks5://" + open, nil, false},
		"scheme's counts": {"HTTP_PROXY=socks5://" + open + " ALL_PROXY=http://127.0.0.1:1", nil, false},
		"password":        {"ALL_PROXY=socks5://user:hush@" + guarded, nil, false},
		"wrong password":  {"ALL_PROXY=socks5://user:hush2@" + guarded, store.ErrDenied, true},
		"no password":     {"ALL_PROXY=socks5://" + guarded, store.ErrDenied, true},
		"no proxy there":  {"ALL_PROXY=socks5://user:hush@127.0.0.1:1", store.ErrUnavailable, true},
		"http, none":      {"ALL_PROXY=http://127.0.0.1:1", store.ErrUnavailable, true},
		"another kind":    {"ALL_PROXY=socks4://" + open, errors.ErrUnsupported, true},
	} {
		t.Run(name, func(t *testing.T) {
			for _, variable := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"} {
				t.Setenv(variable, "")
			}
			for setting := range strings.FieldsSeq(test.variables) {
				variable, value, _ := strings.Cut(setting, "=")
				t.Setenv(variable, value)
			}
			for _, r := range []store.Reader{newReader(t, "http://store.test/", web.Options{}), inS3(t, "s3+http://store.test/bucket")} {
				got, err := r.Read(t.Context(), "x", nil, 10)
				if test.want == nil {
					if string(got) != "data" || err != nil {
						t.Errorf("Read = %q, %v", got, err)
						continue
					}
					var name string
					select {
					case name = <-names:
					case name = <-alsoNames:
					}
					if name != "store.test" {
						t.Errorf("the proxy is asked for %q", name)
					}
					continue
				}
				if !errors.Is(err, test.want) || errors.Is(err, transfer.ErrProxy) != test.proxy || strings.Contains(err.Error(), "hush") {
					t.Errorf("Read = %v, want %v", err, test.want)
				}
			}
		})
	}
	t.Setenv("ALL_PROXY", "socks5://127.0.0.1:1")
	t.Setenv("NO_PROXY", ".test")
	_, err := newReader(t, "http://store.test/", web.Options{}).Read(t.Context(), "x", nil, 10)
	if errors.Is(err, transfer.ErrProxy) || !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Read without a proxy = %v, want that there is no such host", err)
	}
}

func inS3(t *testing.T, location string) store.Reader {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", "a")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "b")
	l, err := s3.Parse(location)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s3.New(l, s3.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return b
}
