package e2e

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestServeStartsFromCache: a server whose image is in its cache starts while the index's location is
// unreachable. The log reports it, and the state of the location when it answers again. A missing index is
// accepted as an answer.
func TestServeStartsFromCache(t *testing.T) {
	t.Parallel()
	dir, image := publishedNoise(t, 2<<20)
	cairn(t, "make", filepath.Join(dir, "other.caibx"), writeFile(t, dir, "image2", image[:1<<20]))
	o := newOrigin(t, dir)
	address := o.Listener.Addr().String()
	cache := filepath.Join(t.TempDir(), "cache")
	index := "http://user:SECRET@" + address + "/v.caibx?key=SECRET"
	metrics := "unix:" + filepath.Join(socketDir(t), "metrics")
	args := []string{index, "--cache", cache, "--stall-timeout", "0", "--metrics", metrics,
		"-s", "http://user:SECRET@" + address + "/default.castr?key=SECRET"}
	s := serve(t, 1, append(args, "--prefetch", "all")...)
	s.stderr.await(t, "complete on disk")
	s.signal(t, syscall.SIGTERM)
	s.wantStopped(t)
	o.Close()
	for _, answer := range []string{"has the image that is served", "has another image by now", "not with an index"} {
		s := serve(t, 1, args...)
		s.stderr.await(t, "from the cache")
		wantServed(t, s, image)
		if status := cairn(t, "status", metrics, "--json"); !strings.Contains(status, "/default.castr") || strings.Contains(status, "SECRET") {
			t.Errorf("cairn status tells a secret, or no store:\n%s", status)
		}
		again := listenAgain(t, address, dir)
		s.stderr.await(t, answer)
		again.Close()
		s.signal(t, syscall.SIGTERM)
		s.wantStopped(t)
		if strings.Contains(s.stderr.String(), "SECRET") {
			t.Errorf("the log tells a secret:\n%s", s.stderr)
		}
		if answer == "has the image that is served" {
			must(t, "cp", filepath.Join(dir, "other.caibx"), filepath.Join(dir, "v.caibx"))
		} else {
			must(t, "rm", "-f", filepath.Join(dir, "v.caibx"))
		}
	}
	again := listenAgain(t, address, dir)
	defer again.Close()
	fails(t, notFound, "not found", append([]string{"serve"}, args...)...)
	if found := run(t, "grep", "-r", "SECRET", cache); found.status != 1 {
		t.Errorf("the cache holds a secret: %+v", found)
	}
}

// listenAgain serves a directory at the former address of a server.
func listenAgain(t testing.TB, address, dir string) *httptest.Server {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.FileServer(http.Dir(dir))}}
	s.Start()
	return s
}

// TestServeWaitsForIndex: a server whose index cannot be read yet waits for it, reports that to systemd, and
// stops in an orderly way on a signal.
func TestServeWaitsForIndex(t *testing.T) {
	dir, image := publishedNoise(t, 300_000)
	o := newOrigin(t, dir)
	o.away.Store(true)
	args := []string{"serve", o.URL + "/v.caibx"}
	fails(t, notFound, "store unavailable", append(args, "--stall-timeout", "1ms")...)

	notices := filepath.Join(socketDir(t), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notices, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", notices)
	stopped := start(t, nil, args...)
	stopped.stderr.await(t, "waiting for the index")
	os.Unsetenv("NOTIFY_SOCKET")
	l.SetReadDeadline(time.Now().Add(patience))
	notice := make([]byte, 4096)
	n, err := l.Read(notice)
	if err != nil || !strings.Contains(string(notice[:n]), "EXTEND_TIMEOUT_USEC=") || !strings.Contains(string(notice[:n]), "STATUS=waiting") {
		t.Errorf("systemd is told %q, %v", notice[:n], err)
	}
	stopped.signal(t, syscall.SIGTERM)
	if got := stopped.wait(t); got.status != 0 || got.stdout != "" {
		t.Errorf("a server that was ended while it waited: %+v", got)
	}

	socket := filepath.Join(socketDir(t), "socket")
	s := start(t, nil, append(args, "--listen", "unix:"+socket)...)
	s.stderr.await(t, "waiting for the index")
	o.away.Store(false)
	s.stdout.await(t, "nbd+unix")
	wantServed(t, &serving{job: s, uris: []string{"x?socket=" + socket}}, image)
	s.signal(t, syscall.SIGTERM)
	if got := s.wait(t); got.status != 0 {
		t.Errorf("%+v", got)
	}
}

// TestServeAwaitsProfile: an unreadable profile delays no client, and is used when it can be read.
func TestServeAwaitsProfile(t *testing.T) {
	t.Parallel()
	dir, image := publishedNoise(t, 2<<20)
	recorded := filepath.Join(dir, "r.caprf")
	s := serve(t, 1, filepath.Join(dir, "v.caibx"), "--record", recorded)
	wantServed(t, s, image)
	s.signal(t, syscall.SIGTERM)
	s.wantStopped(t)
	o := newOrigin(t, dir)
	o.away.Store(true)
	s = serve(t, 1, filepath.Join(dir, "v.caibx"), "--profile", o.URL+"/r.caprf")
	s.stderr.await(t, "until it can be read")
	o.away.Store(false)
	s.stderr.await(t, "prefetching the chunks of a profile")
}
