package crashtest

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"cairn/blob"
)

// depot is a web server for releases that counts the sent bytes.
type depot struct {
	url      string
	releases releases

	mu   sync.Mutex // guards the fields below
	sent map[string]int64
	// before is called before a chunk is sent, with the number of requests so far. false ends the connection.
	before func(n int) bool
	asked  int
}

// newDepot serves a directory until the test ends.
func newDepot(t testing.TB, r releases) *depot {
	t.Helper()
	d := &depot{releases: r, sent: map[string]int64{}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		d.serve(w, q, filepath.Join(r.dir, filepath.FromSlash(q.URL.Path)))
	}))
	t.Cleanup(server.Close)
	d.url = server.URL
	return d
}

func (d *depot) serve(w http.ResponseWriter, q *http.Request, path string) {
	if !strings.HasSuffix(path, ".cacnk") || q.Method != http.MethodGet {
		http.ServeFile(w, q, path)
		return
	}
	d.mu.Lock()
	before, n := d.before, d.asked
	d.asked++
	d.mu.Unlock()
	if before != nil && !before(n) {
		panic(http.ErrAbortHandler)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		http.NotFound(w, q)
		return
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	if n, err := w.Write(data); err == nil && n == len(data) {
		d.mu.Lock()
		d.sent[filepath.Base(path)] += int64(n)
		d.mu.Unlock()
	}
}

// index returns the index of release x.
func (d *depot) index(t testing.TB) *blob.Index {
	t.Helper()
	return d.releases.read(t, "x")
}

// meanwhile sets the function to call before each chunk from now on.
func (d *depot) meanwhile(f func(n int) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.before, d.asked = f, 0
}

// startAndKill starts a cairn command, and kills it when it requests the chunk of that number.
func (d *depot) startAndKill(t testing.TB, chunk int, args ...string) *job {
	t.Helper()
	return d.startAndKillWhen(t, func(n int) bool { return n == chunk }, args...)
}

// startAndKillWhen starts a cairn command, and kills it when it requests a chunk and is reports true for its number.
func (d *depot) startAndKillWhen(t testing.TB, is func(n int) bool, args ...string) *job {
	t.Helper()
	var j *job
	started := make(chan struct{})
	d.meanwhile(func(n int) bool {
		if <-started; is(n) {
			_ = j.cmd.Process.Kill()
		}
		return true
	})
	j = start(t, "cairn", args...)
	close(started)
	return j
}

// news returns the sent bytes of each chunk by name since the last call.
func (d *depot) news() map[string]int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	was := d.sent
	d.sent = map[string]int64{}
	return was
}

func total(sent map[string]int64) (n int64) {
	for _, size := range sent {
		n += size
	}
	return n
}
