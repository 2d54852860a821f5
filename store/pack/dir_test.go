package pack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cairn/blob"
	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/store/web"
)

// webServer serves the objects of a bucket. It counts requests and the bytes of bodies.
type webServer struct {
	*mem.Bucket
	requests, bytes atomic.Int64
	handle          http.HandlerFunc // nil serves the bucket, with ranges
}

func (s *webServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.requests.Add(1)
	counted := &countedWriter{w, &s.bytes}
	if s.handle != nil {
		s.handle(counted, r)
		return
	}
	http.ServeContent(counted, r, "", time.Time{}, bytes.NewReader(s.file(r)))
}

// file returns the requested object.
func (s *webServer) file(r *http.Request) []byte {
	data, err := s.Read(r.Context(), strings.TrimPrefix(r.URL.Path, "/"), nil, 1<<30)
	if err != nil {
		panic(err)
	}
	return data
}

type countedWriter struct {
	http.ResponseWriter
	bytes *atomic.Int64
}

// Write counts the bytes before the client has them.
func (w *countedWriter) Write(p []byte) (int, error) {
	w.bytes.Add(int64(len(p)))
	return w.ResponseWriter.Write(p)
}

// rig is an image in packs on a web server.
type rig struct {
	testImage
	m      *Map
	server *webServer
	dir    *Dir
}

func newRig(t *testing.T, chunks int, packSize int64, o Options) *rig {
	t.Helper()
	r := &rig{testImage: newImage(t, blob.SHA512_256, chunks), server: &webServer{Bucket: new(mem.Bucket)}}
	r.m = writePacks(t, r.server, r.testImage, packSize, all)
	at := httptest.NewServer(r.server)
	t.Cleanup(at.Close)
	location, err := web.Parse(at.URL)
	if err != nil {
		t.Fatal(err)
	}
	from, err := web.New(location, web.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r.dir = NewDir(from, blob.SHA512_256, o)
	return r
}

// wants returns the wants of some chunks.
func (r *rig) wants(chunks ...int) []store.Want {
	wants := make([]store.Want, len(chunks))
	for n, i := range chunks {
		c := r.index.At(i)
		wants[n] = store.Want{Digest: c.Digest, Dst: make([]byte, c.Size)}
	}
	return wants
}

func (r *rig) allChunks() (chunks []int) {
	for i := range r.index.Len() {
		chunks = append(chunks, i)
	}
	return chunks
}

// get gets some chunks, and returns the outcome of each. Right bytes and one outcome are checked.
func (r *rig) get(t *testing.T, chunks ...int) []error {
	t.Helper()
	return r.getWants(t, t.Context(), r.wants(chunks...))
}

func (r *rig) getWants(t *testing.T, ctx context.Context, wants []store.Want) []error {
	t.Helper()
	outcomes, count := make([]error, len(wants)), make([]int, len(wants))
	var mu sync.Mutex
	r.dir.Get(ctx, r.m.Find, wants, func(i int, err error) {
		mu.Lock()
		defer mu.Unlock()
		outcomes[i] = err
		count[i]++
	})
	for i, w := range wants {
		if count[i] != 1 {
			t.Fatalf("want %d has %d outcomes", i, count[i])
		}
		if outcomes[i] == nil && !bytes.Equal(w.Dst, r.plain[w.Digest]) {
			t.Fatalf("want %d has wrong bytes", i)
		}
	}
	return outcomes
}

func (r *rig) mustGet(t *testing.T, chunks ...int) {
	t.Helper()
	for n, err := range r.get(t, chunks...) {
		if err != nil {
			t.Fatalf("chunk %d: %v", chunks[n], err)
		}
	}
}

// countErrors returns how many outcomes are of each kind.
func countErrors(outcomes []error) (good, absent, corrupt, other int) {
	for _, err := range outcomes {
		_, isCorrupt := errors.AsType[*store.CorruptError](err)
		switch {
		case err == nil:
			good++
		case errors.Is(err, store.ErrNotFound):
			absent++
		case isCorrupt:
			corrupt++
		default:
			other++
		}
	}
	return good, absent, corrupt, other
}

// size returns the bytes of the chunk files.
func (r *rig) size() (n int64) {
	for _, f := range r.files {
		n += int64(len(f))
	}
	return n
}

// TestGet: all chunks of an image take one request for each pack, in any order and with repeats.
func TestGet(t *testing.T) {
	r := newRig(t, 100, 50<<10, Options{})
	chunks := r.allChunks()
	slices.Reverse(chunks)
	r.mustGet(t, append(chunks, 5, 6, 5)...)
	if got, want := r.server.requests.Load(), int64(len(r.m.Packs())); got != want {
		t.Errorf("%d requests, want %d", got, want)
	}
	if got, want := r.server.bytes.Load(), r.size(); got != want {
		t.Errorf("%d bytes, want %d", got, want)
	}
	if outcomes := r.get(t); len(outcomes) > 0 {
		t.Errorf("outcomes without wants: %v", outcomes)
	}
}

// TestGaps: chunks with a small gap between them are one request, and those with a large one are two.
func TestGaps(t *testing.T) {
	r := newRig(t, 200, 1<<20, Options{})
	for _, c := range []struct {
		chunks   []int
		requests int64
	}{{[]int{1, 5}, 1}, {[]int{1, 100}, 2}, {[]int{1, 9, 17, 100, 101}, 2}, {[]int{7}, 1}} {
		before := r.server.requests.Load()
		r.mustGet(t, c.chunks...)
		if got := r.server.requests.Load() - before; got != c.requests {
			t.Errorf("chunks %v took %d requests, want %d", c.chunks, got, c.requests)
		}
	}
}

// TestNotPacked: a chunk in no pack, or of another image, is absent, and others come.
func TestNotPacked(t *testing.T) {
	r := newRig(t, 20, 1<<20, Options{})
	r.m = writePacks(t, r.server, r.testImage, 1<<20, func(i int) bool { return i != 6 })
	wants := append(r.wants(5, 6, 7), store.Want{Digest: blob.Digest{1}, Dst: make([]byte, 10)})
	if good, absent, _, _ := countErrors(r.getWants(t, t.Context(), wants)); good != 2 || absent != 2 {
		t.Errorf("%d chunks and %d absent ones, want 2 and 2", good, absent)
	}
}

// withoutRanges answers every request with the whole object.
func (r *rig) withoutRanges(w http.ResponseWriter, request *http.Request) {
	_, _ = w.Write(r.server.file(request))
}

// TestNoRanges: from a server without ranges each pack is downloaded once, whatever is wanted of it and when.
func TestNoRanges(t *testing.T) {
	r := newRig(t, 200, 40<<10, Options{})
	r.server.handle = r.withoutRanges
	var group sync.WaitGroup
	for i := range r.index.Len() {
		group.Go(func() { r.mustGet(t, i) })
	}
	group.Wait()
	r.mustGet(t, r.allChunks()...)
	if got, want := r.server.requests.Load(), int64(len(r.m.Packs())); got != want {
		t.Errorf("%d requests for %d packs", got, want)
	}
}

// TestMemory: whole packs take no more memory than the limit. Those that do not fit are requested again.
func TestMemory(t *testing.T) {
	r := newRig(t, 200, 40<<10, Options{Memory: 100 << 10})
	r.server.handle = r.withoutRanges
	for range 2 {
		r.mustGet(t, r.allChunks()...)
		if used := r.dir.whole.used; used > 100<<10 || used == 0 {
			t.Errorf("%d bytes of packs in memory", used)
		}
	}
	packs := int64(len(r.m.Packs()))
	if got := r.server.requests.Load(); got > 2*packs {
		t.Errorf("%d requests for %d packs, twice", got, packs)
	}
}

// TestLargePack: a pack that does not fit into the memory is read up to the last wanted chunk.
func TestLargePack(t *testing.T) {
	r := newRig(t, 200, 1<<20, Options{Memory: 100 << 10})
	r.server.handle = r.withoutRanges
	for range 2 {
		r.mustGet(t, 1, 2, 9)
	}
	if n := r.dir.whole.used; n > 0 {
		t.Errorf("%d bytes of packs in memory", n)
	}
	if got := r.server.requests.Load(); got != 2 {
		t.Errorf("%d requests, want 2", got)
	}
}

// TestLeastRecentlyUsed: the pack that was not used for the longest time is dropped.
func TestLeastRecentlyUsed(t *testing.T) {
	r := newRig(t, 200, 40<<10, Options{Memory: 100 << 10})
	r.server.handle = r.withoutRanges
	first := map[Pack]int{}
	for i, c := range r.index.All() {
		at, _ := r.m.Find(c.Digest)
		if _, ok := first[at.Pack]; !ok {
			first[at.Pack] = i
		}
	}
	p := r.m.Packs()
	for _, n := range []int{0, 1, 0, 2, 0} {
		r.mustGet(t, first[p[n]])
	}
	if got := r.server.requests.Load(); got != 3 {
		t.Errorf("%d requests for 3 packs, of which 2 fit into memory", got)
	}
	r.mustGet(t, first[p[1]])
	if got := r.server.requests.Load(); got != 4 {
		t.Errorf("%d requests, want 4", got)
	}
}

// TestServers: whatever a server answers, outcomes are right bytes or errors, and the waste is bounded.
func TestServers(t *testing.T) {
	wrongPart := func(r *rig, w http.ResponseWriter, request *http.Request, field string) {
		w.Header().Set("Content-Range", field)
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(r.server.file(request)[:10])
	}
	for name, c := range map[string]struct {
		handle   func(r *rig, w http.ResponseWriter, request *http.Request)
		want     string // of the outcomes: good, absent, corrupt or other
		requests int64  // limit
	}{
		"404": {func(_ *rig, w http.ResponseWriter, request *http.Request) { http.NotFound(w, request) }, "absent", 6},
		"403": {func(_ *rig, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, "other", 6},
		"503": {func(_ *rig, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }, "other", 20},
		"416": {func(_ *rig, w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
		}, "corrupt", 8},
		"another size": {func(r *rig, w http.ResponseWriter, request *http.Request) {
			http.ServeContent(w, request, "", time.Time{}, bytes.NewReader(append(r.server.file(request), 0)))
		}, "corrupt", 8},
		"another pack": {func(r *rig, w http.ResponseWriter, request *http.Request) {
			data := bytes.Repeat([]byte{0x28, 0xb5, 0x2f, 0xfd, 1, 2, 3}, len(r.server.file(request)))[:len(r.server.file(request))]
			http.ServeContent(w, request, "", time.Time{}, bytes.NewReader(data))
		}, "corrupt", 14},
		"another pack without ranges": {func(r *rig, w http.ResponseWriter, request *http.Request) {
			_, _ = w.Write(bytes.Repeat([]byte("x"), len(r.server.file(request))))
		}, "corrupt", 14},
		"empty": {func(*rig, http.ResponseWriter, *http.Request) {}, "corrupt", 14},
		"a wrong range": {func(r *rig, w http.ResponseWriter, request *http.Request) {
			wrongPart(r, w, request, "bytes 0-9/100000")
		}, "other", 24},
		"multipart": {func(r *rig, w http.ResponseWriter, request *http.Request) {
			w.Header().Set("Content-Type", "multipart/byteranges; boundary=x")
			w.WriteHeader(http.StatusPartialContent)
		}, "other", 24},
		"wrong ranges, but whole packs": {func(r *rig, w http.ResponseWriter, request *http.Request) {
			if strings.HasPrefix(request.Header.Get("Range"), "bytes=0-") {
				r.withoutRanges(w, request)
				return
			}
			wrongPart(r, w, request, "bytes 0-9/100000")
		}, "good", 8},
		"ranges only sometimes": {func(r *rig, w http.ResponseWriter, request *http.Request) {
			if r.server.requests.Load()%2 == 0 {
				r.withoutRanges(w, request)
				return
			}
			http.ServeContent(w, request, "", time.Time{}, bytes.NewReader(r.server.file(request)))
		}, "good", 20},
		"no length": {func(r *rig, w http.ResponseWriter, request *http.Request) {
			w.(*countedWriter).ResponseWriter.(http.Flusher).Flush()
			r.withoutRanges(w, request)
		}, "good", 6},
		"endless": {func(r *rig, w http.ResponseWriter, request *http.Request) {
			w.(*countedWriter).ResponseWriter.(http.Flusher).Flush()
			r.withoutRanges(w, request)
			for range 100 {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		}, "good", 6},
		"truncated": {func(r *rig, w http.ResponseWriter, request *http.Request) {
			data := r.server.file(request)
			w.Header().Set("Content-Length", strconv.Itoa(len(data)))
			_, _ = w.Write(data[:100])
		}, "other", 20},
		"truncated range": {func(r *rig, w http.ResponseWriter, request *http.Request) {
			http.ServeContent(&shortWriter{w, 3000}, request, "", time.Time{}, bytes.NewReader(r.server.file(request)))
		}, "some", 45},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 200, 80<<10, Options{})
			r.server.handle = func(w http.ResponseWriter, request *http.Request) { c.handle(r, w, request) }
			var outcomes []error
			const step = 40
			for at := 0; at < r.index.Len(); at += step {
				var chunks []int
				for i := at; i < min(at+step, r.index.Len()); i++ {
					if i != at+20 { // not the whole of a pack
						chunks = append(chunks, i)
					}
				}
				outcomes = append(outcomes, r.get(t, chunks...)...)
			}
			good, absent, corrupt, other := countErrors(outcomes)
			counts := map[string]int{"good": good, "absent": absent, "corrupt": corrupt, "other": other, "some": good + other}
			if counts[c.want] != len(outcomes) || c.want == "some" && good*other == 0 {
				t.Errorf("%d good, %d absent, %d corrupt and %d other outcomes, want all %s; the last: %v",
					good, absent, corrupt, other, c.want, outcomes[len(outcomes)-1])
			}
			if got := r.server.requests.Load(); got > c.requests {
				t.Errorf("%d requests, want at most %d", got, c.requests)
			}
		})
	}
}

// shortWriter ends the answer after some bytes.
type shortWriter struct {
	http.ResponseWriter
	left int
}

func (w *shortWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p[:min(len(p), w.left)])
	if w.left -= n; w.left == 0 {
		return n, errors.New("it ends here")
	}
	return n, err
}

// TestSecondRequest: a chunk that a transfer damaged is requested again, alone; the others of its request are not.
func TestSecondRequest(t *testing.T) {
	for _, ranges := range []bool{true, false} {
		t.Run(fmt.Sprint("ranges ", ranges), func(t *testing.T) {
			r := newRig(t, 30, 1<<20, Options{})
			r.server.handle = func(w http.ResponseWriter, request *http.Request) {
				data := r.server.file(request)
				if at, _ := r.m.Find(r.index.At(7).Digest); r.server.requests.Load() == 1 {
					data[at.Offset+at.Size/2]++
				}
				if ranges {
					http.ServeContent(w, request, "", time.Time{}, bytes.NewReader(data))
				} else {
					_, _ = w.Write(data)
				}
			}
			r.mustGet(t, 5, 6, 7, 8, 9)
			if got := r.server.requests.Load(); got != 2 {
				t.Errorf("%d requests, want 2", got)
			}
			if at, _ := r.m.Find(r.index.At(7).Digest); ranges && r.server.bytes.Load() > r.spanSize(5, 9)+at.Size {
				t.Errorf("%d bytes were sent", r.server.bytes.Load())
			}
		})
	}
}

func (r *rig) spanSize(first, last int) int64 {
	from, _ := r.m.Find(r.index.At(first).Digest)
	to, _ := r.m.Find(r.index.At(last).Digest)
	return to.End() - from.Offset
}

// TestRottenChunks: chunks that are corrupt in the store stay corrupt, and the others of the pack are read.
func TestRottenChunks(t *testing.T) {
	r := newRig(t, 100, 1<<20, Options{})
	r.server.handle = func(w http.ResponseWriter, request *http.Request) {
		data := r.server.file(request)
		for i := range 20 {
			at, _ := r.m.Find(r.index.At(5 * i).Digest)
			data[at.Offset+at.Size/2]++
		}
		http.ServeContent(w, request, "", time.Time{}, bytes.NewReader(data))
	}
	for range 3 {
		good, _, corrupt, _ := countErrors(r.get(t, r.allChunks()...))
		if corrupt < 20 || corrupt > 30 || good+corrupt != r.index.Len() { // the zeros repeat
			t.Errorf("%d good and %d corrupt chunks", good, corrupt)
		}
	}
}

// TestAbsentIsAskedAgain: a pack that was absent is requested again after a while.
func TestAbsentIsAskedAgain(t *testing.T) {
	image := newImage(t, blob.SHA512_256, 10)
	b := new(mem.Bucket)
	m := writePacks(t, b, image, 1<<20, all)
	synctest.Test(t, func(t *testing.T) {
		absent := &absentFor{b, time.Now().Add(refuseFor), 0}
		r := &rig{testImage: image, m: m, dir: NewDir(absent, blob.SHA512_256, Options{})}
		for range 5 {
			if _, absent, _, _ := countErrors(r.get(t, 1, 2)); absent != 2 {
				t.Error("chunks of an absent pack are not absent")
			}
		}
		if absent.requests != 1 {
			t.Errorf("%d requests for an absent pack", absent.requests)
		}
		time.Sleep(refuseFor)
		r.mustGet(t, 1, 2)
	})
}

// absentFor is a bucket that lacks everything until a time.
type absentFor struct {
	store.Bucket
	until    time.Time
	requests int
}

func (b *absentFor) Read(ctx context.Context, name string, dst []byte, limit int64) ([]byte, error) {
	b.requests++
	if time.Now().Before(b.until) {
		return nil, store.ErrNotFound
	}
	return b.Bucket.Read(ctx, name, dst, limit)
}

// TestCancelledOwner: when the Get that downloads a whole pack is cancelled, another one downloads it.
func TestCancelledOwner(t *testing.T) {
	r := newRig(t, 100, 1<<20, Options{})
	started := make(chan struct{}, 10)
	r.server.handle = func(w http.ResponseWriter, request *http.Request) {
		data := r.server.file(request)
		_, _ = w.Write(data[:len(data)/2])
		w.(*countedWriter).ResponseWriter.(http.Flusher).Flush()
		started <- struct{}{}
		if r.server.requests.Load() == 1 {
			<-request.Context().Done()
		}
		_, _ = w.Write(data[len(data)/2:])
	}
	last := r.index.Len() - 1
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() {
		if err := r.getWants(t, ctx, r.wants(last))[0]; !errors.Is(err, context.Canceled) {
			t.Errorf("a cancelled Get: %v", err)
		}
	})
	<-started
	r.mustGet(t, 1) // it is among the first bytes
	for range 3 {
		group.Go(func() { r.mustGet(t, last) })
	}
	cancel()
	group.Wait()
	if got := r.server.requests.Load(); got != 2 {
		t.Errorf("%d requests, want 2", got)
	}
	if err := r.getWants(t, ctx, r.wants(3))[0]; err != nil {
		t.Errorf("a pack in memory, after the context has ended: %v", err)
	}
	r.dir.whole.forget(r.m.Packs()[0])
	if err := r.getWants(t, ctx, r.wants(3))[0]; !errors.Is(err, context.Canceled) {
		t.Errorf("after the context has ended: %v", err)
	}
}

// TestAdmit: each request is admitted, and tells the bytes of the chunks that it brought.
func TestAdmit(t *testing.T) {
	var admitted, received atomic.Int64
	for _, ranges := range []bool{true, false} {
		admitted.Store(0)
		received.Store(0)
		r := newRig(t, 100, 50<<10, Options{Admit: func(ctx context.Context, request func() (int, error)) error {
			admitted.Add(1)
			n, err := request()
			received.Add(int64(n))
			return err
		}})
		if !ranges {
			r.server.handle = r.withoutRanges
		}
		r.mustGet(t, r.allChunks()...)
		var want int64
		for _, data := range r.plain {
			want += int64(len(data))
		}
		want += int64(r.index.Len()-len(r.plain)) * 4 << 10 // repeated zeros count for each want
		if got := r.server.requests.Load(); admitted.Load() != got || received.Load() < want || received.Load() > want*11/10 {
			t.Errorf("ranges %v: %d requests of %d were admitted, for %d bytes of %d", ranges, admitted.Load(), got, received.Load(), want)
		}
	}
	refused := errors.New("refused")
	r := newRig(t, 3, 50<<10, Options{Admit: func(context.Context, func() (int, error)) error { return refused }})
	if err := r.get(t, 1)[0]; !errors.Is(err, refused) {
		t.Errorf("a request that is not admitted: %v", err)
	}
}

// TestContinued: when a transfer breaks, the rest of its chunks are requested, as long as each request brings some.
func TestContinued(t *testing.T) {
	r := newRig(t, 100, 1<<20, Options{})
	r.server.handle = func(w http.ResponseWriter, request *http.Request) {
		left := 60_000
		if r.server.requests.Load() == 3 {
			left = 1 << 20
		}
		http.ServeContent(&shortWriter{w, left}, request, "", time.Time{}, bytes.NewReader(r.server.file(request)))
	}
	r.mustGet(t, r.allChunks()...)
	if got, want := r.server.requests.Load(), int64(3); got != want {
		t.Errorf("%d requests, want %d", got, want)
	}
	if got, limit := r.server.bytes.Load(), r.size()+20_000; got > limit {
		t.Errorf("%d bytes, want at most %d", got, limit)
	}
}

// TestSilence: a request without an answer ends after a while, before and after its first bytes.
func TestSilence(t *testing.T) {
	image := newImage(t, blob.SHA512_256, 30)
	b := new(mem.Bucket)
	m := writePacks(t, b, image, 1<<20, all)
	for _, n := range []int64{-1, 2500} {
		synctest.Test(t, func(t *testing.T) {
			begun := time.Now()
			o := Options{Silence: func() time.Duration { return 5 * time.Second }}
			r := &rig{testImage: image, m: m, dir: NewDir(silent{b, n}, blob.SHA512_256, o)}
			outcomes := r.get(t, 1, 2, 5, 6, 7, 8, 9, 10)
			good, _, _, other := countErrors(outcomes)
			last := outcomes[len(outcomes)-1]
			if !errors.Is(last, store.ErrUnavailable) || good+other != 8 || (n > 0) != (good > 0) {
				t.Errorf("%d chunks, and %v", good, last)
			}
			if took := time.Since(begun); took > 15*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// silent is a bucket that falls silent after n bytes of each answer, or before the answer if n is negative.
type silent struct {
	*mem.Bucket
	n int64
}

func (b silent) StreamRange(ctx context.Context, name string, off, n int64, use func(store.Part, io.Reader) error) error {
	if b.n < 0 {
		<-ctx.Done()
		return ctx.Err()
	}
	return b.Bucket.StreamRange(ctx, name, off, n, func(part store.Part, in io.Reader) error {
		return use(part, io.MultiReader(io.LimitReader(in, b.n), readerFunc(func([]byte) (int, error) {
			<-ctx.Done()
			return 0, ctx.Err()
		})))
	})
}
