package crashtest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/nbd/nbdtest"
)

// server is a cairn serve of release x with an image cache.
type server struct {
	*job
	dir string // of its socket, status and log
}

// serve starts a server, and returns when it accepts connections.
func serve(t testing.TB, d *depot, cache string, more ...string) *server {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd-") // t.TempDir's name may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	s := &server{dir: dir}
	args := append([]string{"-c", `exec cairn serve "$@" 2>` + s.at("log"), "sh", d.url + "/x.caibx", "--cache", cache,
		"--cache-limit", "0", "--memory", "1MiB", "--listen", "unix:" + s.at("socket"), "--metrics", "unix:" + s.at("status")}, more...)
	s.job = start(t, "sh", args...)
	t.Cleanup(func() { os.RemoveAll(dir) })
	_ = s.client(t).Close()
	return s
}

func (s *server) at(name string) string { return filepath.Join(s.dir, name) }

// client connects to the server, which may still be starting.
func (s *server) client(t testing.TB) (c *nbdtest.Client) {
	t.Helper()
	within(t, "the server takes no connections", func() (err error) {
		if c, err = nbdtest.Dial(t.Context(), "unix", s.at("socket")); err == nil {
			_, err = c.Go("")
		}
		return err
	})
	return c
}

// within repeats try until it succeeds.
func within(t testing.TB, otherwise string, try func() error) {
	t.Helper()
	err := try()
	for end := time.Now().Add(patience); err != nil && time.Now().Before(end); err = try() {
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		t.Fatalf("%s: %v", otherwise, err)
	}
}

// said returns the server's log so far.
func (s *server) said(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile(s.at("log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// await waits until the server has logged words.
func (s *server) await(t testing.TB, words string) {
	t.Helper()
	within(t, "the server", func() error {
		if said := s.said(t); !strings.Contains(said, words) {
			return fmt.Errorf("it has not said %q, only:\n%s", words, said)
		}
		return nil
	})
}

func (s *server) wantSaidOnce(t testing.TB, words string) {
	t.Helper()
	if n := strings.Count(s.said(t), words); n != 1 {
		t.Errorf("%q is said %d times:\n%s", words, n, s.said(t))
	}
}

// stop ends the server in an orderly way.
func (s *server) stop(t testing.TB) {
	t.Helper()
	s.end(t, syscall.SIGTERM, 0)
}

// kill kills the server. The cache stays as it is.
func (s *server) kill(t testing.TB) {
	t.Helper()
	s.end(t, syscall.SIGKILL, -1)
}

func (s *server) end(t testing.TB, signal os.Signal, status int) {
	t.Helper()
	if err := s.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
	if got := s.wait(t); got.status != status {
		t.Errorf("cairn serve: exit status %d, want %d\n%s", got.status, status, s.said(t))
	}
}

// wantAll reads the whole image and compares it.
func (s *server) wantAll(t testing.TB, image []byte) {
	t.Helper()
	c := s.client(t)
	defer c.Close()
	for at := 0; at < len(image); at += 256 * kib {
		wantRead(t, c, image, at, min(256*kib, len(image)-at))
	}
}

// wantSome reads and compares random ranges.
func (s *server) wantSome(t testing.TB, image []byte, random *rand.Rand, times int) {
	t.Helper()
	c := s.client(t)
	defer c.Close()
	for range times {
		n := 1 + random.IntN(128*kib)
		wantRead(t, c, image, random.IntN(len(image)-n), n)
	}
}

func wantRead(t testing.TB, c *nbdtest.Client, image []byte, at, n int) {
	t.Helper()
	p := make([]byte, n)
	if err := c.Read(t.Context(), p, uint64(at)); err != nil {
		t.Fatalf("reading %d bytes at %d: %v", n, at, err)
	}
	if !bytes.Equal(p, image[at:at+n]) {
		t.Fatalf("%d bytes at %d are wrong", n, at)
	}
}
