package supply

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cairn/blob"
	"cairn/internal/test/packtest"
	"cairn/store"
	"cairn/store/local"
	"cairn/store/locate"
	"cairn/store/pack"
)

// packedRig has 40 chunks in packs beside a directory store, which has only the even ones.
type packedRig struct {
	samples []sample
	m       *pack.Map
	dir     string
}

func newPackedRig(t *testing.T) *packedRig {
	t.Helper()
	r := &packedRig{dir: t.TempDir()}
	builder, err := blob.NewBuilder(blob.SHA512_256, blob.Params{Min: 1, Avg: 8 << 10, Max: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		s := newSample(uint64(i), 20_000)
		r.samples = append(r.samples, s)
		if _, err := builder.Add(int64(len(s.data)), s.digest); err != nil {
			t.Fatal(err)
		}
	}
	r.m = packtest.Pack(t, bucketOf(t, r.samples...), r.bucket(t, "s.capack"), builder.Index(), pack.MinSize, nil)
	w := newWriter(t, r.bucket(t, "s.castr"))
	for i := 0; i < 40; i += 2 {
		if _, err := w.Put(t.Context(), r.samples[i].digest, r.samples[i].data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *packedRig) bucket(t *testing.T, name string) *local.Bucket {
	t.Helper()
	dir := filepath.Join(r.dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b, err := local.Open(dir, local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func packDirOf(at locate.Location) (locate.Location, error) {
	return at.Beside("s.capack")
}

// open opens stores in order, each s.castr below a location, and uses the map.
func (r *packedRig) open(t *testing.T, o Options, places ...string) (s *Supply, stop func()) {
	t.Helper()
	for i := range places {
		places[i] += "/s.castr"
	}
	groups := [][]locate.Location{locations(t, places...)}
	s, err := Open(groups, locate.Access{Retry: store.Policy{Patience: 500 * time.Millisecond, First: time.Millisecond}}, blob.SHA512_256, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, s.UsePacks(r.m, packDirOf)
}

// requests counts the requests for packs and chunks.
type requests struct{ packs, chunks atomic.Int64 }

// serve serves the files of the rig. answer may answer a request, and then returns true.
func (r *packedRig) serve(t *testing.T, answer func(w http.ResponseWriter, r *http.Request) bool) (url string, n *requests) {
	t.Helper()
	files := http.FileServer(http.Dir(r.dir))
	n = new(requests)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, pack.Suffix) {
			n.packs.Add(1)
		} else {
			n.chunks.Add(1)
		}
		if answer == nil || !answer(w, r) {
			files.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	return server.URL, n
}

func isPack(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, pack.Suffix) }

// countFailures gets all chunks, and returns the number that failed, and one of the errors.
func (r *packedRig) countFailures(t *testing.T, s *Supply) (n int, last error) {
	t.Helper()
	for _, err := range outcomesAtOnce(t, s, wants(r.samples...)) {
		if err != nil {
			n++
			last = err
		}
	}
	return n, last
}

// outcomesAtOnce is outcomes for a Getter that calls done concurrently.
func outcomesAtOnce(t *testing.T, g store.Getter, list []store.Want) []error {
	t.Helper()
	ordered := make(chan func(), len(list))
	errs := outcomes(t, t.Context(), manyFunc(func(ctx context.Context, wants []store.Want, done func(int, error)) {
		g.Get(ctx, wants, func(i int, err error) { ordered <- func() { done(i, err) } })
		close(ordered)
		for call := range ordered {
			call()
		}
	}), list)
	return errs
}

type manyFunc func(ctx context.Context, wants []store.Want, done func(int, error))

func (g manyFunc) Get(ctx context.Context, wants []store.Want, done func(int, error)) {
	g(ctx, wants, done)
}

// TestUsePacks: chunks in packs take few requests, and a Quote tells them exactly. Without a map each chunk is requested.
func TestUsePacks(t *testing.T) {
	r := newPackedRig(t)
	for _, ranges := range []bool{true, false} {
		url, n := r.serve(t, func(w http.ResponseWriter, request *http.Request) bool {
			if !ranges {
				request.Header.Del("Range")
				w.Header().Set("Accept-Ranges", "none")
			}
			return false
		})
		s, stop := r.open(t, Options{}, url)
		var digests []blob.Digest
		for _, s := range r.samples {
			digests = append(digests, s.digest)
		}
		q, err := s.Quote(t.Context(), digests)
		if err != nil {
			t.Fatal(err)
		}
		wantRequests, wantBytes := q.Cost([][]blob.Digest{digests})
		packs := int64(len(r.m.Packs()))
		if wantRequests != packs || n.chunks.Load() > 0 {
			t.Errorf("ranges %v: the quote is %d requests for %d packs, and asked for %d chunks", ranges, wantRequests, packs, n.chunks.Load())
		}
		asked, before := n.packs.Load(), downloaded(s)
		if failed, err := r.countFailures(t, s); failed > 0 {
			t.Errorf("ranges %v: %d chunks failed: %v", ranges, failed, err)
		}
		if got := n.packs.Load() - asked; got != wantRequests || n.chunks.Load() > 0 {
			t.Errorf("ranges %v: %d requests for packs and %d for chunks, want %d", ranges, got, n.chunks.Load(), wantRequests)
		}
		if got := downloaded(s) - before; got != wantBytes {
			t.Errorf("ranges %v: %d bytes downloaded, want the %d of the quote", ranges, got, wantBytes)
		}
		stop()
		stop()
		r.samples[0].wantFrom(t, s)
		if n.chunks.Load() != 1 || s.IsPacked(r.samples[0].digest) {
			t.Errorf("ranges %v: %d requests for chunks without a map, want 1", ranges, n.chunks.Load())
		}
	}
}

func downloaded(s *Supply) int64 {
	_, bytes := s.Downloaded()
	return bytes
}

// TestPacksFail: chunks whose packs fail come from the same store, and from the packs and chunks of the others.
func TestPacksFail(t *testing.T) {
	r := newPackedRig(t)
	gone := func(w http.ResponseWriter, request *http.Request) bool {
		if isPack(request) {
			http.NotFound(w, request)
		}
		return isPack(request)
	}
	busy := func(w http.ResponseWriter, request *http.Request) bool {
		if isPack(request) {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		return isPack(request)
	}
	allGone := func(w http.ResponseWriter, request *http.Request) bool {
		http.NotFound(w, request)
		return true
	}
	other := func(w http.ResponseWriter, request *http.Request) bool {
		if isPack(request) {
			_, _ = w.Write(make([]byte, 1<<20))
		}
		return isPack(request)
	}
	type server = func(w http.ResponseWriter, request *http.Request) bool
	for name, c := range map[string]struct {
		servers []server
		failed  int
		kind    error // of the failures; nil if they are corrupt
	}{
		"packs":                          {[]server{nil}, 0, nil},
		"no packs":                       {[]server{gone}, 20, store.ErrNotFound},
		"no packs, then all":             {[]server{gone, nil}, 0, nil},
		"busy":                           {[]server{busy}, 20, store.ErrUnavailable},
		"busy, then all":                 {[]server{busy, nil}, 0, nil},
		"nothing, then all":              {[]server{allGone, nil}, 0, nil},
		"nothing, no packs, then all":    {[]server{allGone, gone, nil}, 0, nil},
		"other packs":                    {[]server{other}, 20, nil},
		"other packs, then all":          {[]server{other, nil}, 0, nil},
		"nothing anywhere":               {[]server{allGone, allGone}, 40, store.ErrNotFound},
		"busy, and nothing elsewhere":    {[]server{busy, allGone}, 20, store.ErrUnavailable},
		"all, then one that is not read": {[]server{nil, other}, 0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var places []string
			for _, answer := range c.servers {
				url, _ := r.serve(t, answer)
				places = append(places, url)
			}
			s, _ := r.open(t, Options{}, places...)
			failed, err := r.countFailures(t, s)
			_, corrupt := errors.AsType[*store.CorruptError](err)
			if failed != c.failed || failed > 0 && (c.kind != nil && !errors.Is(err, c.kind) || c.kind == nil && !corrupt) {
				t.Errorf("%d chunks failed with %v, want %d with %v", failed, err, c.failed, c.kind)
			}
		})
	}
}

// TestPacksOfDirectory: a directory store is read by packs too.
func TestPacksOfDirectory(t *testing.T) {
	r := newPackedRig(t)
	s, _ := r.open(t, Options{}, r.dir)
	if failed, err := r.countFailures(t, s); failed > 0 {
		t.Errorf("%d chunks failed: %v", failed, err)
	}
	if objects, _ := s.Downloaded(); objects != int64(len(r.m.Packs())) {
		t.Errorf("%d objects read, want %d packs", objects, len(r.m.Packs()))
	}
}

// TestPacksInBudget: the bytes of packs count in the budget, also those of a whole pack in place of a range.
func TestPacksInBudget(t *testing.T) {
	r := newPackedRig(t)
	var stored int64
	for _, p := range r.m.Packs() {
		stored += p.Size
	}
	for _, ranges := range []bool{true, false} {
		url, _ := r.serve(t, func(_ http.ResponseWriter, request *http.Request) bool {
			if !ranges {
				request.Header.Del("Range")
			}
			return false
		})
		s, _ := r.open(t, Options{Budget: stored}, url)
		if failed, err := r.countFailures(t, s); failed > 0 {
			t.Errorf("ranges %v: with a budget of all packs %d chunks failed: %v", ranges, failed, err)
		}
		s, _ = r.open(t, Options{Budget: stored / 3}, url)
		failed, err := r.countFailures(t, s)
		if _, bytes := s.Downloaded(); failed == 0 || !errors.Is(err, ErrBudget) || bytes > stored/3 {
			t.Errorf("ranges %v: with a third of that %d chunks failed with %v, and %d of %d bytes were read",
				ranges, failed, err, bytes, stored/3)
		}
	}
}

// TestLooseAndPacked: chunks in no pack are requested at the same time as those in packs.
func TestLooseAndPacked(t *testing.T) {
	r := newPackedRig(t)
	odd := func(i int) bool { return i%2 == 1 }
	r.m = packtest.Pack(t, bucketOf(t, r.samples...), r.bucket(t, "s.capack"), r.m.Index(), pack.MinSize, odd)
	url, n := r.serve(t, nil)
	s, _ := r.open(t, Options{}, url)
	if failed, err := r.countFailures(t, s); failed > 0 {
		t.Errorf("%d chunks failed: %v", failed, err)
	}
	if packs := int64(len(r.m.Packs())); n.packs.Load() != packs || n.chunks.Load() != 20 {
		t.Errorf("%d requests for %d packs, and %d for 20 chunks", n.packs.Load(), packs, n.chunks.Load())
	}
	if a, b := r.samples[1].digest, r.samples[3].digest; !s.Near(a, b) || s.Near(a, r.samples[2].digest) || !s.IsPacked(a) {
		t.Error("neighbours in a pack are not near, or others are")
	}
}
