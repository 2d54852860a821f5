package e2e

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/internal/test/nginx"
	"cairn/store/storetest"
)

// traffic is a number of chunks, and their bytes as sent over a network.
type traffic struct {
	chunks int
	bytes  int64
}

// webServer is a real nginx over a directory, with its access log.
type webServer struct {
	url, log string
	seen     traffic // sent before the last call of sent
}

// newNginx serves a directory on 127.0.0.1 until the test ends.
func newNginx(t testing.TB, dir string) *webServer {
	t.Helper()
	s := storetest.StartNginx(t, nginx.Options{Root: dir, Log: true})
	return &webServer{url: "http://" + s.Address(), log: s.AccessLog()}
}

// sent returns the chunks that nginx has sent since the last call, from its access log.
func (n *webServer) sent(t testing.TB) traffic {
	t.Helper()
	var all traffic
	n.each(t, func(_ string, status int, size int64) {
		if status == http.StatusOK {
			all.chunks++
			all.bytes += size
		}
	})
	news := traffic{all.chunks - n.seen.chunks, all.bytes - n.seen.bytes}
	n.seen = all
	return news
}

// asked returns the number of requests for each chunk by its digest, whatever their results.
func (n *webServer) asked(t testing.TB) map[string]int {
	t.Helper()
	all := map[string]int{}
	n.each(t, func(digest string, _ int, _ int64) { all[digest]++ })
	return all
}

// each calls request for each request for a chunk in the access log.
func (n *webServer) each(t testing.TB, request func(digest string, status int, size int64)) {
	t.Helper()
	// The only worker logs a request before it handles the next one: after this answer the log is complete.
	answer, err := http.Get(n.url + "/are-you-done")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	for line := range strings.Lines(string(readFile(t, n.log))) {
		var method, name string
		var status int
		var size int64
		if _, err := fmt.Sscan(line, &method, &status, &size, &name); err != nil {
			t.Fatalf("nginx logs %q: %v", line, err)
		}
		if digest, is := strings.CutSuffix(path.Base(name), ".cacnk"); is && method == http.MethodGet {
			request(digest, status, size)
		}
	}
}

// gate is a proxy that forwards some requests for chunks at once, and holds the others until it is opened.
type gate struct {
	url    string
	left   atomic.Int64  // chunks to forward at once
	held   chan struct{} // gets a token when a chunk is held
	opened chan struct{}
}

// newGate starts a gate in front of a server until the test ends.
func newGate(t testing.TB, before string, free int64) *gate {
	t.Helper()
	target, err := url.Parse(before)
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{held: make(chan struct{}, 1), opened: make(chan struct{})}
	g.left.Store(free)
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.ErrorLog = log.New(io.Discard, "", 0) // clients that close connections are expected
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if g.pass(r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	g.url = server.URL
	t.Cleanup(server.Close)
	return g
}

// pass blocks until the request may go on. It returns false if its client has closed the connection.
func (g *gate) pass(r *http.Request) bool {
	if !strings.HasSuffix(r.URL.Path, ".cacnk") || g.left.Add(-1) >= 0 {
		return true
	}
	select {
	case g.held <- struct{}{}:
	default:
	}
	select {
	case <-g.opened:
		return true
	case <-r.Context().Done():
		return false
	}
}

// await blocks until a chunk is held.
func (g *gate) await(t testing.TB) {
	t.Helper()
	select {
	case <-g.held:
	case <-time.After(patience):
		t.Fatal("no chunk was asked for in time")
	}
}

// open forwards all chunks from now on. It must be called only once.
func (g *gate) open() { close(g.opened) }

// deadURL returns an address at which no server listens until the test ends. The port is bound, so that no
// other test's server gets it.
func deadURL(t testing.TB) string {
	t.Helper()
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(socket) })
	if err := unix.Bind(socket, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(socket)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint("http://127.0.0.1:", at.(*unix.SockaddrInet4).Port)
}

// TestDeadURL: no server answers there, and no other program can listen there.
func TestDeadURL(t *testing.T) {
	t.Parallel()
	at := strings.TrimPrefix(deadURL(t), "http://")
	if _, err := net.Dial("tcp", at); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a connection = %v, want %v", err, unix.ECONNREFUSED)
	}
	if _, err := net.Listen("tcp", at); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("another server = %v, want %v", err, unix.EADDRINUSE)
	}
}
