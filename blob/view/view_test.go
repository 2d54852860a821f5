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

// mixed has data, zeros, the data again, and zeros at its end.
func mixed() []byte {
	part := testimages.Random(1, 300_000)
	last := testimages.Random(2, 50_000)
	return bytes.Join([][]byte{part, make([]byte, 150_000), part, last, make([]byte, 40_001)}, nil)
}

// origin is a store that counts what it is asked for, takes its time, and fails on demand.
type origin struct {
	data    map[blob.Digest][]byte
	latency time.Duration

	mu        sync.Mutex // guards what follows
	gets      map[blob.Digest]int
	fail      map[blob.Digest]error
	now, most int // requests under way, and the most there were
}

// holding is an origin with the chunks of some images that are not all zero.
func holding(t testing.TB, images ...[]byte) *origin {
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

// asked is how many requests there were, and how many are under way.
func (o *origin) asked() (all, now int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, n := range o.gets {
		all += n
	}
	return all, o.now
}

// checkOnce: these chunks of x were got once each, zeros apart, which were not.
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
		t.Errorf("requests a chunk (-want +got):\n%s", diff)
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

// open is a view of an image through a cache of its own, which is closed when the test ends.
func open(t testing.TB, x *blob.Index, from store.Getter, limits Limits) *Image {
	t.Helper()
	cache := NewCache(t.Context(), limits)
	t.Cleanup(cache.Close)
	return New(x, cache.Source(from, 0), Options{})
}

// checkRead reads len(p) bytes at off and compares.
func checkRead(t testing.TB, v *Image, image, p []byte, off int64) {
	t.Helper()
	rand.NewChaCha8([32]byte{}).Read(p)
	if err := v.ReadAt(t.Context(), p, off); err != nil {
		t.Errorf("ReadAt(%d bytes, %d) = %v", len(p), off, err)
	} else if !bytes.Equal(p, image[off:off+int64(len(p))]) {
		t.Errorf("ReadAt(%d bytes, %d) gave other bytes than the image's", len(p), off)
	}
}

// checkCache: the cache keeps what it counts, and no more than it may.
func checkCache(t testing.TB, c *Cache) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	var sum int64
	for at := c.recent.Front(); at != nil; at = at.Next() {
		sum += int64(len(at.Value.(*entry).data))
	}
	if sum != c.bytes || sum > max(c.limit, params.Max) {
		t.Errorf("the cache keeps %d bytes, counts %d, and may keep %d", sum, c.bytes, c.limit)
	}
	if c.recent.Len() > 1 && sum+c.taken > c.limit {
		t.Errorf("the cache keeps %d bytes beside the %d being fetched, and may take %d", sum, c.taken, c.limit)
	}
	if len(c.chunks) < c.recent.Len() {
		t.Errorf("%d chunks are kept, %d can be found", c.recent.Len(), len(c.chunks))
	}
}

// TestReadAt reads at random from many goroutines, through caches of several sizes.
func TestReadAt(t *testing.T) {
	image := mixed()
	x := index(t, image)
	for _, limits := range []Limits{{}, {Bytes: 100_000, Fetches: 3}, {Bytes: 1, Fetches: 1}} {
		v := open(t, x, holding(t, image), limits)
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
		checkCache(t, v.source.cache)
	}
}

func TestOutside(t *testing.T) {
	image := testimages.Random(1, 10_000)
	v := open(t, index(t, image), holding(t, image), Limits{})
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
	empty := open(t, index(t, nil), holding(t), Limits{})
	if err := empty.ReadAt(t.Context(), nil, 0); err != nil || empty.ReadAt(t.Context(), make([]byte, 1), 0) == nil {
		t.Errorf("reading nothing of an empty image: %v; reading a byte must fail", err)
	}
}

// TestOneFetch: however many ask for a chunk, it is got once, and all wait no longer than one.
func TestOneFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := mixed()
		x, from := index(t, image), holding(t, image)
		from.latency = time.Second
		v := open(t, x, from, Limits{Fetches: 1000})
		start := time.Now()
		var wg sync.WaitGroup
		for range 30 {
			wg.Go(func() { checkRead(t, v, image, make([]byte, 450_000), 100_000) })
		}
		wg.Wait()
		from.checkOnce(t, x, x.Find(100_000), x.Find(549_999)+1)
		if took := time.Since(start); took != time.Second {
			t.Errorf("the reads took %v, want %v", took, time.Second)
		}
	})
}

// TestFetches: the store is asked for so many chunks at once, and no more.
func TestFetches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := testimages.Random(1, 100_000)
		x, from := index(t, image), holding(t, image)
		from.latency = time.Second
		v := open(t, x, from, Limits{Fetches: 5})
		start := time.Now()
		checkRead(t, v, image, make([]byte, len(image)), 0)
		if want := time.Duration((x.Len()+4)/5) * time.Second; from.most != 5 || time.Since(start) != want {
			t.Errorf("%d fetches at once, in %v; want 5, %v", from.most, time.Since(start), want)
		}
	})
}

// TestFailure: a chunk that cannot be had fails the reads that need it, for as long as it cannot be had.
func TestFailure(t *testing.T) {
	image := testimages.Random(1, 200_000)
	x, from := index(t, image), holding(t, image)
	v := open(t, x, from, Limits{})
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
			t.Error("ReadResident gives a byte of a chunk that could not be had")
		}
		checkRead(t, v, image, make([]byte, broken.Offset), 0)
		checkRead(t, v, image, make([]byte, v.Size()-broken.End()), broken.End())
	}
	if n := from.gets[broken.Digest]; n != 12 {
		t.Errorf("the store was asked %d times for the broken chunk, want each of 12 reads to ask", n)
	}
	delete(from.fail, broken.Digest)
	checkRead(t, v, image, make([]byte, len(image)), 0)
}

// TestMendedMeanwhile: a read that comes upon a fetch that began before anybody waited does not fail with it.
func TestMendedMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := testimages.Random(1, 1000)
		x, from := index(t, image), holding(t, image)
		from.latency = time.Second
		from.fail[x.At(0).Digest] = store.ErrNotFound
		v := open(t, x, from, Limits{})
		if err := v.Prefetch(t.Context(), 0, 1000); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		delete(from.fail, x.At(0).Digest)
		checkRead(t, v, image, make([]byte, 10), 0)
		if n := from.gets[x.At(0).Digest]; n != 2 {
			t.Errorf("the store was asked %d times, want 2", n)
		}
	})
}

// TestWaiterGivesUp: who gives up leaves alone; the fetch goes on, for others and for later.
func TestWaiterGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := testimages.Random(1, 1000)
		x, from := index(t, image), holding(t, image)
		from.latency = time.Minute
		v := open(t, x, from, Limits{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			start := time.Now()
			err := v.ReadAt(ctx, make([]byte, 10), 0)
			if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
				t.Errorf("ReadAt = %v after %v, want %v after 1s", err, time.Since(start), context.DeadlineExceeded)
			}
		})
		wg.Go(func() { checkRead(t, v, image, make([]byte, 1000), 0) })
		wg.Wait()
		if !v.ReadResident(make([]byte, 1000), 0) {
			t.Error("the chunk is not kept")
		}
		from.checkOnce(t, x, 0, x.Len())
	})
}

// TestLimit: two images that are larger than their cache leave no more in it than may stay.
func TestLimit(t *testing.T) {
	a, b := testimages.Random(1, 300_000), testimages.Random(2, 300_000)
	cache := NewCache(t.Context(), Limits{Bytes: 70_000})
	defer cache.Close()
	source := cache.Source(holding(t, a, b), 0)
	var wg sync.WaitGroup
	for _, image := range [][]byte{a, b} {
		v := New(index(t, image), source, Options{})
		wg.Go(func() {
			for off := int64(0); off < v.Size(); off += 10_000 {
				checkRead(t, v, image, make([]byte, 10_000), off)
				checkCache(t, cache)
			}
		})
	}
	wg.Wait()
	if used, limit := cache.Usage(); limit != 70_000 || used > limit || used < limit-params.Max {
		t.Errorf("Usage() = %d, %d", used, limit)
	}
	if cache.bytes < 70_000-params.Max {
		t.Errorf("the cache keeps %d bytes, though it may keep 70000", cache.bytes)
	}
}

// TestLeastRecentlyUsedGoes: what is read again and again stays, whatever else passes through.
func TestLeastRecentlyUsedGoes(t *testing.T) {
	image := testimages.Random(1, 300_000)
	x, from := index(t, image), holding(t, image)
	v := open(t, x, from, Limits{Bytes: 70_000})
	for off := range v.Size() / 1000 {
		checkRead(t, v, image, make([]byte, 1000), off*1000)
		checkRead(t, v, image, make([]byte, 1), 0)
	}
	from.checkOnce(t, x, 0, x.Len())
}

// TestLargeChunk: a chunk that is larger than the whole cache can be read in small pieces.
func TestLargeChunk(t *testing.T) {
	image := testimages.Random(1, 20_000)
	x, from := index(t, image), holding(t, image)
	v := open(t, x, from, Limits{Bytes: 100})
	for off := range v.Size() / 100 {
		checkRead(t, v, image, make([]byte, 100), off*100)
	}
	from.checkOnce(t, x, 0, x.Len())
}

// TestZeros: no store is asked for zeros.
func TestZeros(t *testing.T) {
	image := make([]byte, 1<<20+5)
	from := &origin{gets: map[blob.Digest]int{}}
	v := open(t, index(t, image), from, Limits{})
	checkRead(t, v, image, make([]byte, len(image)), 0)
	checkResident(t, v, image, 0, len(image))
	if err := v.Prefetch(t.Context(), 0, v.Size()); err != nil {
		t.Errorf("Prefetch of zeros = %v", err)
	}
	if all, _ := from.asked(); all != 0 {
		t.Errorf("the store was asked for %d chunks, want none", all)
	}
}

// checkResident: the n bytes at off are here, and right.
func checkResident(t testing.TB, v *Image, image []byte, off int64, n int) {
	t.Helper()
	p := testimages.Random(9, n)
	if !v.ReadResident(p, off) {
		t.Errorf("ReadResident(%d bytes, %d) = false, want true", n, off)
	} else if !bytes.Equal(p, image[off:][:n]) {
		t.Errorf("ReadResident(%d bytes, %d) gave other bytes than the image's", n, off)
	}
}

func TestReadResident(t *testing.T) {
	image := mixed()
	x, from := index(t, image), holding(t, image)
	v := open(t, x, from, Limits{})
	if v.ReadResident(make([]byte, 1), 0) || v.ReadResident(make([]byte, 20_000), 290_000) {
		t.Error("ReadResident = true before anything was read")
	}
	if all, _ := from.asked(); all != 0 {
		t.Errorf("ReadResident asked the store for %d chunks", all)
	}
	c := x.At(5)
	checkRead(t, v, image, make([]byte, 1), c.Offset+1)
	checkResident(t, v, image, c.Offset, int(c.Size))
	checkResident(t, v, image, c.Offset+450_000, 1) // the same bytes come again there
	if v.ReadResident(make([]byte, c.Size+1), c.Offset) || v.ReadResident(make([]byte, 2), c.Offset-1) {
		t.Error("ReadResident = true for more than the chunk that was read")
	}
	checkRead(t, v, image, make([]byte, len(image)), 0)
	checkResident(t, v, image, 0, len(image))
}

// TestPrefetch: it waits for nothing, fetches what it is asked for once, and never more than half a cache.
func TestPrefetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := testimages.Random(1, 1<<20)
		x, from := index(t, image), holding(t, image)
		from.latency = time.Minute
		v := open(t, x, from, Limits{Bytes: 200_000, Fetches: 3})
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
			t.Errorf("%d more bytes were fetched, though half a cache from there on is here", got)
		}
	})
}

// TestUnreadOfAnother: what one image's profile brought and another image reads first counts for neither any more.
func TestUnreadOfAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := testimages.Random(1, 300_000)
		x := index(t, image)
		cache := NewCache(t.Context(), Limits{Bytes: 64 << 10})
		defer cache.Close()
		source := cache.Source(holding(t, image), 0)
		a, b := New(x, source, Options{}), New(x, source, Options{})
		mustPrefetch(t, b, 0, 1)
		synctest.Wait()
		checkRead(t, b, image, make([]byte, 200_000), 100_000) // pushes it out
		a.Follow([]int{0})
		synctest.Wait()
		checkRead(t, b, image, make([]byte, 1), 0)
		cache.mu.Lock()
		defer cache.mu.Unlock()
		if a.unread != 0 || b.unread != 0 {
			t.Errorf("%d and %d bytes count as not read, want none", a.unread, b.unread)
		}
	})
}

func mustPrefetch(t *testing.T, v *Image, off, n int64) {
	t.Helper()
	if err := v.Prefetch(t.Context(), off, n); err != nil {
		t.Errorf("Prefetch(%d, %d): %v", off, n, err)
	}
}

// TestPrefetchFailure: a failed prefetch is nobody's error, and a read asks again.
func TestPrefetchFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := testimages.Random(1, 1000)
		x, from := index(t, image), holding(t, image)
		from.fail[x.At(0).Digest] = store.ErrUnavailable
		v := open(t, x, from, Limits{})
		mustPrefetch(t, v, 0, 1000)
		synctest.Wait()
		delete(from.fail, x.At(0).Digest)
		checkRead(t, v, image, make([]byte, 1000), 0)
	})
}

func TestExtents(t *testing.T) {
	image := mixed()
	v := open(t, index(t, image), holding(t), Limits{})
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
		break // which must not panic
	}
}

// TestSizesDisagree: indexes may give one digest several sizes. The wrong ones fail, and give no bytes.
func TestSizesDisagree(t *testing.T) {
	image := testimages.Random(1, 1000)
	from := holding(t, image)
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
	v := open(t, b.Index(), from, Limits{})
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

// TestClose: it ends the fetches, and leaves no goroutine, or synctest would complain.
func TestClose(t *testing.T) {
	for name, end := range map[string]func(cancel context.CancelFunc, c *Cache){
		"closed":              func(_ context.CancelFunc, c *Cache) { c.Close() },
		"cancelled, closed":   func(cancel context.CancelFunc, c *Cache) { cancel(); c.Close() },
		"cancelled, no close": func(cancel context.CancelFunc, _ *Cache) { cancel() },
	} {
		synctest.Test(t, func(t *testing.T) {
			image := testimages.Random(1, 100_000)
			x, from := index(t, image), holding(t, image)
			from.latency = time.Hour
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			cache := NewCache(ctx, Limits{Fetches: 2})
			v, start := New(x, cache.Source(from, 0), Options{}), time.Now()
			for range 3 {
				go func() {
					if err := v.ReadAt(t.Context(), make([]byte, 10_000), 5000); !errors.Is(err, context.Canceled) {
						t.Errorf("%s: ReadAt = %v, want %v", name, err, context.Canceled)
					}
				}()
			}
			mustPrefetch(t, v, 0, v.Size())
			synctest.Wait()
			end(cancel, cache)
			synctest.Wait()
			before, now := from.asked()
			if now != 0 || time.Since(start) != 0 {
				t.Errorf("%s: %d fetches are under way, %v later", name, now, time.Since(start))
			}
			mustPrefetch(t, v, 0, v.Size())
			if err := v.ReadAt(t.Context(), make([]byte, 1), 0); !errors.Is(err, context.Canceled) {
				t.Errorf("%s: ReadAt = %v, want %v", name, err, context.Canceled)
			}
			if after, _ := from.asked(); after != before {
				t.Errorf("%s: %d fetches begin afterwards", name, after-before)
			}
		})
	}
}

// TestCloseBesideReads: no fetch is under way or begins when Close has returned, whoever reads meanwhile.
func TestCloseBesideReads(t *testing.T) {
	image := testimages.Random(1, 100_000)
	x := index(t, image)
	for range 50 {
		from := holding(t, image)
		cache := NewCache(t.Context(), Limits{Bytes: 20_000})
		v := New(x, cache.Source(from, 0), Options{})
		var wg sync.WaitGroup
		begun := make(chan struct{}, 4)
		for range 4 {
			wg.Go(func() {
				for err := error(nil); err == nil; {
					err = v.ReadAt(t.Context(), make([]byte, 50_000), 0)
					begun <- struct{}{}
				}
			})
		}
		go func() {
			wg.Wait()
			close(begun)
		}()
		<-begun
		cache.Close()
		before, now := from.asked()
		for range begun { // until the readers have ended
		}
		if after, _ := from.asked(); now != 0 || after != before {
			t.Fatalf("Close left %d fetches, and %d began after it", now, after-before)
		}
	}
}

func TestReadResidentAllocatesNothing(t *testing.T) {
	image := mixed()
	v := open(t, index(t, image), holding(t, image), Limits{})
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

// benchmarkHit reads 4 KiB here and there of an image that is all in memory.
func benchmarkHit(b *testing.B, read func(v *Image, p []byte, off int64) bool) {
	image := testimages.Random(1, 8<<20)
	v := open(b, index(b, image), holding(b, image), Limits{})
	checkRead(b, v, image, make([]byte, len(image)), 0)
	p, off := make([]byte, 4096), int64(0)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		if off = (off + 1_000_003) % (8<<20 - 4096); !read(v, p, off) {
			b.Fatal("not here")
		}
	}
}
