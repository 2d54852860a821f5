package e2e

import (
	"bytes"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"cairn/internal/test/need"
	"cairn/nbd/nbdtest"
	"cairn/testimages"
)

// TestServeFewDescriptors: a server with 64 descriptors serves every image to the clients of its unix socket, while one
// TCP client takes as many connections and images as it gets.
func TestServeFewDescriptors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var images [][]byte
	for n := range 6 {
		image := testimages.Random(uint64(n), 300_000)
		file := writeFile(t, t.TempDir(), "image", image)
		cairn(t, "make", filepath.Join(dir, fmt.Sprint(n)+".caibx"), file, "-s", filepath.Join(dir, "default.castr"))
		images = append(images, image)
	}
	socket := filepath.Join(socketDir(t), "s")
	s := &serving{job: startProgram(t, nil, "sh", "-c", `ulimit -n 64; exec "$0" "$@"`, need.Tool(t, "cairn"), "serve",
		"--watch", dir, "--cache", t.TempDir(), "--listen", "tcp:127.0.0.1:0", "--listen", "unix:"+socket)}
	s.stdout.await(t, "nbd+unix:")
	at, err := url.Parse(strings.Fields(s.stdout.String())[0])
	if err != nil {
		t.Fatal(err)
	}
	choose := func(network, address string, n int) (*nbdtest.Client, error) {
		client, err := nbdtest.Dial(t.Context(), network, address)
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { client.Close() })
		_, err = client.Go(fmt.Sprint(n))
		return client, err
	}
	held := 0
	for n := range 80 {
		if client, err := choose("tcp", at.Host, n%len(images)); err == nil {
			held++
			_ = client.Read(t.Context(), make([]byte, 512), 0)
		}
	}
	if held == 0 || held > 8 {
		t.Errorf("the TCP client holds %d connections", held)
	}
	for n, image := range append(images, images...) {
		n %= len(images)
		client, err := choose("unix", socket, n)
		if err != nil {
			t.Fatalf("image %d: %v", n, err)
		}
		got := make([]byte, len(image))
		if err := client.Read(t.Context(), got, 0); err != nil || !bytes.Equal(got, image) {
			t.Errorf("image %d: %v, or other bytes", n, err)
		}
		client.Close()
	}
	s.signal(t, syscall.SIGTERM)
	if r := s.wait(t); r.status != 0 {
		t.Errorf("the server ended with %d:\n%s", r.status, r.stderr)
	}
}
