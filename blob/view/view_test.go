package view

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"cairn/blob"
	"cairn/blob/scan"
	"cairn/blob/view/fetch"
	"cairn/chunker"
	"cairn/store"
	"cairn/store/storetest"
	"cairn/testimages"
)

var params = chunker.Params{Min: 1 << 10, Avg: 4 << 10, Max: 16 << 10}

func index(t testing.TB, image []byte) *blob.Index {
	t.Helper()
	x, _, err := scan.Image(t.Context(), chunker.FromReader(bytes.NewReader(image)), scan.Options{Params: params})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// mixed returns an image with data, zeros, the same data, other data, and zeros at its end.
func mixed() []byte {
	part := testimages.Random(1, 300_000)
	last := testimages.Random(2, 50_000)
	return bytes.Join([][]byte{part, make([]byte, 150_000), part, last, make([]byte, 40_001)}, nil)
}

// origin is a store that counts its requests, has a latency, and fails requests for chosen chunks.
type origin struct {
	data    map[blob.Digest][]byte
	latency time.Duration

	mu        sync.Mutex // guards the fields below
	gets      map[blob.Digest]int
	fail      map[blob.Digest]error
	now, most int // requests in flight, and their maximum
}

// newOrigin returns an origin with the chunks of some images, without zeros.
func newOrigin(t testing.TB, images ...[]byte) *origin {
	t.Helper()
	o := &origin{data: map[blob.Digest][]byte{}, gets: map[blob.Digest]int{}, fail: map[blob.Digest]error{}}
	for _, image := range images {
		x := index(t, image)
		for i, c := range x.All() {
			if !x.IsZero(i) {
				o.data[c.Digest] = image[c.Offset:c.End()]
			}
		}
	}
	return o
}

// Get implements store.Getter.
func (o *origin) Get(ctx context.Context, wants []store.Want, done func(i int, err error)) {
	storetest.GetterFunc(o.get).Get(ctx, wants, done)
}

func (o *origin) get(ctx context.Context, d blob.Digest, dst []byte) error {
	data, err := o.begin(d)
	defer o.end()
	if err := sleep(ctx, o.latency); err != nil {
		return err
	}
	if err != nil {
		return err
	}
	if len(data) != len(dst) {
		return store.ErrNotFound
	}
	copy(dst, data)
	return nil
}

func (o *origin) begin(d blob.Digest) ([]byte, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.gets[d]++
	o.now++
	o.most = max(o.most, o.now)
	return o.data[d], o.fail[d]
}

func (o *origin) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.now--
}

// countRequests returns the number of all requests, and of those in flight.
func (o *origin) countRequests() (all, now int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, n := range o.gets {
		all += n
	}
	return all, o.now
}

// checkOnce checks that the chunks [lo, hi) of x, but for zeros, were requested once each, and no others.
func (o *origin) checkOnce(t *testing.T, x *blob.Index, lo, hi int) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	want := map[blob.Digest]int{}
	for i, c := range x.Range(lo, hi) {
		if !x.IsZero(i) {
			want[c.Digest] = 1
		}
	}
	if diff := cmp.Diff(want, o.gets); diff != "" {
		t.Errorf("requests per chunk (-want +got):\n%s", diff)
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	if d == 0 {
		return ctx.Err()
	}
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// newView returns a view with a Cache of its own, which is closed when the test ends.
func newView(t testing.TB, x *blob.Index, from store.Getter, limits fetch.Options) *Image {
	t.Helper()
	cache := fetch.New(t.Context(), limits)
	t.Cleanup(cache.Close)
	return New(x, cache.NewSource(from, fetch.SourceOptions{}), Options{})
}

// checkRead reads len(p) bytes at off into p, and compares them with the image's.
func checkRead(t testing.TB, v *Image, image, p []byte, off int64) {
	t.Helper()
	rand.NewChaCha8([32]byte{}).Read(p)
	if err := v.ReadAt(t.Context(), p, off); err != nil {
		t.Errorf("ReadAt(%d bytes, %d) = %v", len(p), off, err)
	} else if !bytes.Equal(p, image[off:off+int64(len(p))]) {
		t.Errorf("ReadAt(%d bytes, %d) returned wrong bytes", len(p), off)
	}
}

// TestReadAt checks concurrent random reads, with Caches of several sizes.
func TestReadAt(t *testing.T) {
	image := mixed()
	x := index(t, image)
	for _, limits := range []fetch.Options{{}, {Bytes: 100_000, Fetches: 3}, {Bytes: 1, Fetches: 1}} {
		cache := fetch.New(t.Context(), limits)
		defer cache.Close()
		v := New(x, cache.NewSource(newOrigin(t, image), fetch.SourceOptions{}), Options{})
		var wg sync.WaitGroup
		for reader := range 8 {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(reader), 1))
				for range 40 {
					off := rng.IntN(len(image))
					checkRead(t, v, image, make([]byte, rng.IntN(min(len(image)-off, 60_000)+1)), int64(off))
				}
			})
		}
		wg.Wait()
		checkRead(t, v, image, make([]byte, len(image)), 0)
		if used, limit := cache.Usage(); used > max(limit, params.Max) {
			t.Errorf("%d bytes are in memory, want at most %d", used, limit)
		}
	}
}

func TestOutside(t *testing.T) {
	image := testimages.Random(1, 10_000)
	v := newView(t, index(t, image), newOrigin(t, image), fetch.Options{})
	if v.Size() != 10_000 {
		t.Errorf("Size = %d, want 10000", v.Size())
	}
	for _, c := range []struct {
		off, n int64
		within bool
	}{
		{0, 0, true}, {10_000, 0, true}, {0, 10_000, true}, {9_999, 1, true},
		{-1, 1, false}, {10_000, 1, false}, {9_999, 2, false}, {0, 10_001, false}, {10_001, 0, false},
		{1<<63 - 1, 1, false},
	} {
		p := make([]byte, c.n)
		if err := v.ReadAt(t.Context(), p, c.off); (err == nil) != c.within {
			t.Errorf("ReadAt(%d bytes, %d) = %v, want an error: %v", c.n, c.off, err, !c.within)
		}
		if got := v.ReadResident(p, c.off); got && !c.within {
			t.Errorf("ReadResident(%d bytes, %d) = true", c.n, c.off)
		}
		if err := v.Prefetch(t.Context(), c.off, c.n); (err == nil) != c.within {
			t.Errorf("Prefetch(%d, %d) = %v, want an error: %v", c.off, c.n, err, !c.within)
		}
	}
	if err := v.Prefetch(t.Context(), 0, -1); err == nil {
		t.Error("Prefetch of -1 bytes succeeds")
	}
	empty := newView(t, index(t, nil), newOrigin(t), fetch.Options{})
	if err := empty.ReadAt(t.Context(), nil, 0); err != nil || empty.ReadAt(t.Context(), make([]byte, 1), 0) == nil {
		t.Errorf("ReadAt(0 bytes, 0) of an empty image = %v, want nil; a read of 1 byte must fail", err)
	}
}

// TestFailure checks that a chunk that cannot be fetched fails each read that needs it, and no others.
func TestFailure(t *testing.T) {
	image := testimages.Random(1, 200_000)
	x, from := index(t, image), newOrigin(t, image)
	v := newView(t, x, from, fetch.Options{})
	broken := x.At(x.Len() / 2)
	corrupt := &store.CorruptError{Name: "x", Err: errors.New("y")}
	for _, want := range []error{store.ErrUnavailable, store.ErrNotFound, corrupt} {
		from.fail[broken.Digest] = want
		for n := 1; n <= 3; n++ {
			if err := v.ReadAt(t.Context(), make([]byte, 1), broken.End()-1); !errors.Is(err, want) {
				t.Errorf("ReadAt of the broken chunk = %v, want %v", err, want)
			}
		}
		if err := v.ReadAt(t.Context(), make([]byte, len(image)), 0); !errors.Is(err, want) {
			t.Errorf("ReadAt of all = %v, want %v", err, want)
		}
		if v.ReadResident(make([]byte, 1), broken.Offset) {
			t.Error("ReadResident = true for a chunk that could not be fetched")
		}
		checkRead(t, v, image, make([]byte, broken.Offset), 0)
		checkRead(t, v, image, make([]byte, v.Size()-broken.End()), broken.End())
	}
	if n := from.gets[broken.Digest]; n != 12 {
		t.Errorf("the broken chunk was requested %d times, want 12, once per read", n)
	}
	delete(from.fail, broken.Digest)
	checkRead(t, v, image, make([]byte, len(image)), 0)
}

// TestZeros checks that zeros are never fetched.
func TestZeros(t *testing.T) {
	image := make([]byte, 1<<20+5)
	from := &origin{gets: map[blob.Digest]int{}}
	v := newView(t, index(t, image), from, fetch.Options{})
	checkRead(t, v, image, make([]byte, len(image)), 0)
	checkResident(t, v, image, 0, len(image))
	if err := v.Prefetch(t.Context(), 0, v.Size()); err != nil {
		t.Errorf("Prefetch of zeros = %v", err)
	}
	if all, _ := from.countRequests(); all != 0 {
		t.Errorf("%d chunks were fetched, want 0", all)
	}
}

// checkResident checks that ReadResident succeeds for the n bytes at off, and returns the image's bytes.
func checkResident(t testing.TB, v *Image, image []byte, off int64, n int) {
	t.Helper()
	p := testimages.Random(9, n)
	if !v.ReadResident(p, off) {
		t.Errorf("ReadResident(%d bytes, %d) = false, want true", n, off)
	} else if !bytes.Equal(p, image[off:][:n]) {
		t.Errorf("ReadResident(%d bytes, %d) returned wrong bytes", n, off)
	}
}

func TestReadResident(t *testing.T) {
	image := mixed()
	x, from := index(t, image), newOrigin(t, image)
	v := newView(t, x, from, fetch.Options{})
	if v.ReadResident(make([]byte, 1), 0) || v.ReadResident(make([]byte, 20_000), 290_000) {
		t.Error("ReadResident = true before the first ReadAt")
	}
	if all, _ := from.countRequests(); all != 0 {
		t.Errorf("ReadResident fetched %d chunks, want 0", all)
	}
	c := x.At(5)
	checkRead(t, v, image, make([]byte, 1), c.Offset+1)
	checkResident(t, v, image, c.Offset, int(c.Size))
	checkResident(t, v, image, c.Offset+450_000, 1) // the image has the same chunk there
	if v.ReadResident(make([]byte, c.Size+1), c.Offset) || v.ReadResident(make([]byte, 2), c.Offset-1) {
		t.Error("ReadResident = true for bytes outside of the fetched chunk")
	}
	checkRead(t, v, image, make([]byte, len(image)), 0)
	checkResident(t, v, image, 0, len(image))
}

// TestPrefetch checks that Prefetch returns at once, fetches each chunk of its range once, and never more than half
// of the memory.
func TestPrefetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := testimages.Random(1, 1<<20)
		x, from := index(t, image), newOrigin(t, image)
		from.latency = time.Minute
		v := newView(t, x, from, fetch.Options{Bytes: 200_000, Fetches: 3})
		start := time.Now()
		mustPrefetch(t, v, 5000, 20_000)
		mustPrefetch(t, v, 5000, 20_000)
		if time.Since(start) != 0 {
			t.Errorf("Prefetch took %v, want no time", time.Since(start))
		}
		time.Sleep(time.Hour)
		checkResident(t, v, image, 5000, 20_000)
		from.checkOnce(t, x, x.Find(5000), x.Find(24_999)+1)

		fetched := func() (bytes int64) {
			time.Sleep(24 * time.Hour)
			synctest.Wait()
			for d, n := range from.gets {
				bytes += int64(n * len(from.data[d]))
			}
			return bytes
		}
		before := fetched()
		for off := int64(0); off < v.Size(); off += 10_000 {
			mustPrefetch(t, v, off, min(10_000, v.Size()-off))
		}
		if got := fetched() - before; got < 80_000 || got > 100_000 || from.most != 3 {
			t.Errorf("%d bytes were fetched, %d chunks at once, want at most 100000, 3", got, from.most)
		}
		mustPrefetch(t, v, 0, v.Size())
		checkResident(t, v, image, 0, 90_000)
		before = fetched()
		mustPrefetch(t, v, 0, v.Size())
		if got := fetched() - before; got != 0 {
			t.Errorf("%d more bytes were fetched, want 0: half of the memory holds the start of the range", got)
		}
	})
}

func mustPrefetch(t *testing.T, v *Image, off, n int64) {
	t.Helper()
	if err := v.Prefetch(t.Context(), off, n); err != nil {
		t.Errorf("Prefetch(%d, %d): %v", off, n, err)
	}
}

func TestExtents(t *testing.T) {
	image := mixed()
	v := newView(t, index(t, image), newOrigin(t), fetch.Options{})
	for _, c := range []struct{ off, n int64 }{
		{0, v.Size()}, {0, 0}, {v.Size(), 0}, {299_000, 3000}, {310_001, 7}, {v.Size() - 1, 1},
	} {
		off, zeros := c.off, int64(0)
		for n, zero := range v.Extents(c.off, c.n) {
			if zero && len(bytes.Trim(image[off:off+n], "\x00")) > 0 || n <= 0 {
				t.Errorf("Extents(%d, %d): %d bytes at %d, zero: %v", c.off, c.n, n, off, zero)
			}
			if zero {
				zeros += n
			}
			off += n
		}
		if off != c.off+c.n {
			t.Errorf("Extents(%d, %d) end at %d", c.off, c.n, off)
		}
		if c.n == v.Size() && zeros < 150_000 {
			t.Errorf("%d bytes are zero, want at least 150000", zeros)
		}
	}
	for range v.Extents(0, v.Size()) {
		break // must not panic
	}
}

// TestSizesDisagree checks an index that has one digest with several sizes. Reads of chunks with a wrong size fail.
func TestSizesDisagree(t *testing.T) {
	image := testimages.Random(1, 1000)
	from := newOrigin(t, image)
	d := blob.SHA512_256.Sum(image)
	b, err := blob.NewBuilder(blob.SHA512_256, blob.Params(params))
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int64{1000, 3000, 500} {
		if _, err := b.Add(size, d); err != nil {
			t.Fatal(err)
		}
	}
	v := newView(t, b.Index(), from, fetch.Options{})
	for range 2 {
		checkRead(t, v, image, make([]byte, 1000), 0)
		for _, off := range []int64{1000, 3500, 4000} {
			if err := v.ReadAt(t.Context(), make([]byte, 10), off); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("ReadAt(10 bytes, %d) = %v, want %v", off, err, store.ErrNotFound)
			}
			if v.ReadResident(make([]byte, 10), off) {
				t.Errorf("ReadResident(10 bytes, %d) = true", off)
			}
		}
	}
}

func TestReadResidentAllocatesNothing(t *testing.T) {
	image := mixed()
	v := newView(t, index(t, image), newOrigin(t, image), fetch.Options{})
	p := make([]byte, 60_000)
	checkRead(t, v, image, p, 250_000)
	if n := testing.AllocsPerRun(100, func() { v.ReadResident(p, 250_000) }); n != 0 {
		t.Errorf("ReadResident allocates %v times", n)
	}
}

func BenchmarkReadResident(b *testing.B) {
	benchmarkHit(b, func(v *Image, p []byte, off int64) bool { return v.ReadResident(p, off) })
}

func BenchmarkReadAtHit(b *testing.B) {
	benchmarkHit(b, func(v *Image, p []byte, off int64) bool { return v.ReadAt(b.Context(), p, off) == nil })
}

// benchmarkHit reads 4 KiB at changing offsets of an image in memory.
func benchmarkHit(b *testing.B, read func(v *Image, p []byte, off int64) bool) {
	image := testimages.Random(1, 8<<20)
	v := newView(b, index(b, image), newOrigin(b, image), fetch.Options{})
	checkRead(b, v, image, make([]byte, len(image)), 0)
	p, off := make([]byte, 4096), int64(0)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		if off = (off + 1_000_003) % (8<<20 - 4096); !read(v, p, off) {
			b.Fatal("not resident")
		}
	}
}
