package e2e

import (
	"bytes"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"cairn/internal/test/need"
	"cairn/nbd/nbdtest"
	"cairn/testimages"
)

// origin serves a directory over HTTP, and counts the sent chunks.
type origin struct {
	*httptest.Server
	bytes, requests atomic.Int64
	away            atomic.Bool
}

func newOrigin(t testing.TB, dir string) *origin {
	t.Helper()
	o := &origin{}
	files := http.FileServer(http.Dir(dir))
	o.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if o.away.Load() {
			http.Error(w, "away", http.StatusServiceUnavailable)
			return
		}
		if strings.HasSuffix(r.URL.Path, ".cacnk") {
			o.requests.Add(1)
			w = counting{w, &o.bytes}
		}
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(o.Close)
	return o
}

type counting struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c counting) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return c.ResponseWriter.Write(p)
}

// publishedNoise publishes an image of random bytes.
func publishedNoise(t testing.TB, size int) (dir string, image []byte) {
	t.Helper()
	dir, image = t.TempDir(), testimages.Random(7, size)
	cairn(t, "make", filepath.Join(dir, "v.caibx"), writeFile(t, dir, "image", image), "--compression-level", "1")
	return dir, image
}

// client connects an NBD client to the server at a socket.
func client(t testing.TB, socket string) *nbdtest.Client {
	t.Helper()
	c, err := nbdtest.Dial(t.Context(), "unix", socket)
	if err == nil {
		err = c.StructuredReplies()
	}
	if err == nil {
		_, err = c.Go("")
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// read reads, and reports whether the server answered. Wrong bytes fail the test.
func read(t testing.TB, c *nbdtest.Client, image []byte, off, n int) bool {
	t.Helper()
	reply, err := c.Do(t.Context(), nbdtest.Request{Command: nbdtest.CmdRead, Offset: uint64(off), Length: uint32(n)})
	if err != nil {
		return false
	}
	if !bytes.Equal(reply.Data, image[off:off+n]) {
		t.Errorf("%d bytes at %d are wrong", n, off)
	}
	return true
}

// TestServeKilled kills the server under load repeatedly. It then serves right bytes, and fetches few chunks again.
func TestServeKilled(t *testing.T) {
	t.Parallel()
	kills := 10
	if os.Getenv("CAIRN_LONG") != "" {
		kills = 100
	}
	if testing.Short() {
		kills = 2
	}
	dir, image := publishedNoise(t, 32<<20)
	o := newOrigin(t, dir)
	socket := filepath.Join(socketDir(t), "s")
	args := []string{o.URL + "/v.caibx", "--cache", filepath.Join(t.TempDir(), "cache"), "--listen", "unix:" + socket}
	rng := rand.New(rand.NewPCG(1, 2))
	for range kills {
		before, s := o.bytes.Load(), serve(t, 1, args...)
		killUnderLoad(t, s, socket, image, rng)
		if got := o.bytes.Load() - before; got > 64<<20 {
			t.Errorf("%d bytes were fetched between two kills", got)
		}
	}
	serve(t, 1, args...)
	c := client(t, socket)
	defer c.Close()
	for off := 0; off < len(image); off += 1 << 20 {
		if !read(t, c, image, off, 1<<20) {
			t.Errorf("the read at %d fails", off)
		}
	}
	total := o.bytes.Load()
	t.Logf("%d kills: %d bytes fetched for an image of %d", kills, total, len(image))
	if most := int64(len(image)) * 3 / 2; kills <= 10 && total > most {
		t.Errorf("%d bytes were fetched in all, want at most %d: what was there was fetched again", total, most)
	}
}

// killUnderLoad reads with several clients, and kills the server after some reads.
func killUnderLoad(t *testing.T, s *serving, socket string, image []byte, rng *rand.Rand) {
	t.Helper()
	var reads atomic.Int64
	enough, limit := make(chan struct{}), int64(5+rng.IntN(60))
	var clients sync.WaitGroup
	for range 4 {
		c, seed := client(t, socket), rng.Uint64()
		clients.Go(func() {
			defer c.Close()
			rng := rand.New(rand.NewPCG(seed, 1))
			for read(t, c, image, rng.IntN(len(image)-200_000), 1+rng.IntN(199_999)) {
				if reads.Add(1) == limit {
					close(enough)
				}
			}
		})
	}
	<-enough
	s.signal(t, syscall.SIGKILL)
	s.wait(t)
	clients.Wait()
}

// TestServeFromCache: without the store, a complete cache serves the image; its file is the image.
func TestServeFromCache(t *testing.T) {
	t.Parallel()
	dir, image := publishedNoise(t, 8<<20)
	o := newOrigin(t, dir)
	cache := filepath.Join(t.TempDir(), "cache")
	s := serve(t, 1, o.URL+"/v.caibx", "--cache", cache, "--prefetch", "all")
	s.stderr.await(t, "complete on disk")
	s.signal(t, syscall.SIGTERM)
	s.wantStopped(t)
	raw, err := filepath.Glob(filepath.Join(cache, "images", "*", "image.raw"))
	if err != nil || len(raw) != 1 || !bytes.Equal(readFile(t, raw[0]), image) {
		t.Errorf("the files %q are not the image, %v", raw, err)
	}
	if n := o.requests.Load(); n == 0 {
		t.Error("nothing was fetched")
	}
	o.away.Store(true)
	s = serve(t, 1, filepath.Join(dir, "v.caibx"), "-s", o.URL+"/default.castr", "--cache", cache)
	wantServed(t, s, image)
	t.Run("two servers", func(t *testing.T) { testTwoServers(t, dir, cache, image) })
}

// testTwoServers: a second server with the same cache reports that it works without it, and serves.
func testTwoServers(t *testing.T, dir, cache string, image []byte) {
	s := serve(t, 1, filepath.Join(dir, "v.caibx"), "--cache", cache)
	s.stderr.await(t, "in use by another process")
	_, socket, _ := strings.Cut(s.uris[0], "?socket=")
	c := client(t, socket)
	defer c.Close()
	if !read(t, c, image, 12_345, 1<<20) {
		t.Error("the second server fails a read")
	}
}

// TestServeOutage: a read waits for an unavailable store, the log names the reason, and the read is answered when the
// store is back. With a stall timeout the read fails, and no other.
func TestServeOutage(t *testing.T) {
	t.Parallel()
	dir, image := publishedNoise(t, 1<<20)
	o := newOrigin(t, dir)
	s := serve(t, 1, o.URL+"/v.caibx", "--prefetch", "none")
	_, socket, _ := strings.Cut(s.uris[0], "?socket=")
	c := client(t, socket)
	defer c.Close()
	o.away.Store(true)
	answered := make(chan bool)
	go func() { answered <- read(t, c, image, 0, 1000) }()
	s.stderr.await(t, "reads wait for the store")
	select {
	case <-answered:
		t.Error("the read does not wait")
	default:
	}
	o.away.Store(false)
	if !<-answered {
		t.Error("the read fails though the store is back")
	}
	o.away.Store(true)
	s = serve(t, 1, filepath.Join(dir, "v.caibx"), "-s", o.URL+"/default.castr", "--stall-timeout", "1s")
	_, socket, _ = strings.Cut(s.uris[0], "?socket=")
	c = client(t, socket)
	defer c.Close()
	if read(t, c, image, 0, 1000) {
		t.Error("a read succeeds without a store")
	}
	o.away.Store(false)
	if !read(t, c, image, 0, 1000) {
		t.Error("the read after an outage fails")
	}
}

// TestServeProfile: a server prefetches the chunks that another one recorded.
func TestServeProfile(t *testing.T) {
	t.Parallel()
	dir, image := publishedNoise(t, 4<<20)
	o := newOrigin(t, dir)
	recorded := filepath.Join(dir, "r.caprf")
	s := serve(t, 1, filepath.Join(dir, "v.caibx"), "--record", recorded)
	_, socket, _ := strings.Cut(s.uris[0], "?socket=")
	c := client(t, socket)
	for _, off := range []int{3 << 20, 1 << 20, 0} {
		if !read(t, c, image, off, 4096) {
			t.Fatal("a read fails")
		}
	}
	_ = c.Close()
	s.signal(t, syscall.SIGTERM)
	s.wantStopped(t)
	cairn(t, "profile", "merge", filepath.Join(dir, "v.caprf"), recorded, recorded)
	var shown struct {
		Chunks     int   `json:"chunks"`
		Recordings int   `json:"recordings"`
		Known      int   `json:"known_chunks"`
		Bytes      int64 `json:"bytes"`
	}
	parse(t, cairn(t, "profile", "show", filepath.Join(dir, "v.caprf"), "--index", filepath.Join(dir, "v.caibx"), "--json"), &shown)
	if shown.Chunks != 3 || shown.Recordings != 2 || shown.Known != 3 || shown.Bytes < 3*4096 {
		t.Errorf("the profile is %+v, want 3 chunks of 2 recordings", shown)
	}
	if out := cairn(t, "profile", "show", "--chunks", filepath.Join(dir, "v.caprf")); strings.Count(out, " ms") != 3 {
		t.Errorf("cairn profile show --chunks: %s", out)
	}
	s = serve(t, 1, o.URL+"/v.caibx")
	s.stderr.await(t, "chunks=3 known=3")
	checkFailed(t, run(t, "cairn", "profile", "show", filepath.Join(dir, "v.caibx")), damaged, "not a profile", nil)
	need.Tool(t, "nbdinfo")
	fails(t, 2, "needs --cache", "serve", filepath.Join(dir, "v.caibx"), "--prefetch", "all")
}

// TestServeDamagedCache: after any change to the files of a cache between two servers, no wrong byte is served,
// and most undamaged data is not fetched again. After an orderly stop the server notices the change by the
// file's size and time; after any other end it needs neither.
func TestServeDamagedCache(t *testing.T) {
	t.Parallel()
	dir, image := publishedNoise(t, 8<<20)
	const most = 2 << 20 // bytes fetched again after damage to 1 MiB
	for name, c := range map[string]struct {
		file   string
		damage func(p []byte) []byte
		most   int64
	}{
		"data flipped":      {"image.*", func(p []byte) []byte { return flipped(p[:1<<20], p[1<<20:]) }, most},
		"data cut off":      {"image.*", func(p []byte) []byte { return p[:7<<20] }, most},
		"data of no length": {"image.*", func([]byte) []byte { return nil }, 9 << 20},
		"map flipped":       {"map", func(p []byte) []byte { return flipped(p, nil) }, 0},
		"a slot flipped":    {"map", func(p []byte) []byte { return flipped(p[:4096], p[4096:]) }, 0},
		"map cut off":       {"map", func(p []byte) []byte { return p[:100] }, 0},
		"map says all":      {"map", func(p []byte) []byte { return bytes.Repeat([]byte{255}, len(p)) }, 0},
		"index flipped":     {"index.caibx", func(p []byte) []byte { return flipped(p, nil) }, 0},
	} {
		for ended, signal := range map[string]syscall.Signal{"stopped": syscall.SIGTERM, "killed": syscall.SIGKILL} {
			t.Run(name+", "+ended, func(t *testing.T) {
				t.Parallel()
				o := newOrigin(t, dir)
				cache := filepath.Join(t.TempDir(), "cache")
				args := []string{o.URL + "/v.caibx", "--cache", cache}
				s := serve(t, 1, append(args, "--prefetch", "all")...)
				s.stderr.await(t, "complete on disk")
				s.signal(t, signal)
				s.wait(t)
				damage(t, filepath.Join(cache, "images", "*", c.file), c.damage, ended == "killed")
				before := o.bytes.Load()
				s = serve(t, 1, append(args, "--prefetch", "none")...)
				wantServed(t, s, image)
				if got := o.bytes.Load() - before; got > c.most {
					t.Errorf("%d bytes are fetched again, want at most %d", got, c.most)
				}
			})
		}
	}
}

// TestServeRot: damage that a disk does not report is found while the server runs, logged and counted. Clients then read
// right bytes, and the image becomes complete again.
func TestServeRot(t *testing.T) {
	t.Parallel()
	dir, image := publishedNoise(t, 300_000)
	o := newOrigin(t, dir)
	cache := filepath.Join(t.TempDir(), "cache")
	s := serve(t, 1, o.URL+"/v.caibx", "--cache", cache, "--prefetch", "all", "--metrics", "tcp:127.0.0.1:0")
	s.stderr.await(t, "complete on disk")
	chunks := int(o.requests.Load())
	rot(t, filepath.Join(cache, "images", "*", "image.*"), image)
	digest := regexp.MustCompile(`is damaged.* chunk=([0-9a-f]{64})`)
	until(t, "all damage is found", func() bool {
		found := map[string]bool{}
		for _, line := range digest.FindAllStringSubmatch(s.stderr.String(), -1) {
			found[line[1]] = true
		}
		return len(found) == chunks
	})
	wantServed(t, s, image)
	until(t, "the image is complete again", func() bool { return strings.Count(s.stderr.String(), "complete on disk") == 2 })
	raw := filepath.Join(cache, "images", "*", "image.raw")
	until(t, "its file is named", func() bool { files, _ := filepath.Glob(raw); return len(files) == 1 })
	m := metricsOf(t, webOf(t, s))
	if n, sampled := m["cache_damaged_chunks_total"], m["cache_sampled_bytes_total"]; n != float64(chunks) || sampled < float64(len(image)) {
		t.Errorf("the metrics count %v damaged chunks and %v sampled bytes, want %d and %d", n, sampled, chunks, len(image))
	}
	files, err := filepath.Glob(raw)
	if err != nil || len(files) != 1 || !bytes.Equal(readFile(t, files[0]), image) {
		t.Errorf("the files %q are not the image, %v", files, err)
	}
	o.away.Store(true)
	wantServed(t, s, image)
}

// rot flips bits of the only file that matches pattern and holds the image, with one write, so that nothing of the file
// is sampled or fetched again before all is damaged.
func rot(t testing.TB, pattern string, image []byte) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	f, err := os.OpenFile(files[0], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(flipped(bytes.Clone(image), nil), 0); err != nil {
		t.Fatal(err)
	}
}

// flipped returns p with a flipped bit in each 4000 bytes, followed by rest.
func flipped(p, rest []byte) []byte {
	for i := 90; i < len(p); i += 4000 {
		p[i] ^= 4
	}
	return append(p, rest...)
}

// damage changes the only file that matches pattern. If secretly is set, it restores the times.
func damage(t testing.TB, pattern string, change func(p []byte) []byte, secretly bool) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	info, err := os.Stat(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(files[0], change(readFile(t, files[0])), 0o600); err != nil {
		t.Fatal(err)
	}
	if secretly {
		if err := os.Chtimes(files[0], info.ModTime(), info.ModTime()); err != nil {
			t.Fatal(err)
		}
	}
}

// wantServed reads and compares the whole image.
func wantServed(t testing.TB, s *serving, image []byte) {
	t.Helper()
	_, socket, _ := strings.Cut(s.uris[0], "?socket=")
	c := client(t, socket)
	defer c.Close()
	for off := 0; off < len(image); off += 1 << 20 {
		if !read(t, c, image, off, min(1<<20, len(image)-off)) {
			t.Errorf("the read at %d fails", off)
		}
	}
}
