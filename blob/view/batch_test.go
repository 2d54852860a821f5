package view

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cairn/blob"
	"cairn/store"
	"cairn/testimages"
)

// manyOrigin is an origin that gets chunks together, and counts how many.
type manyOrigin struct {
	*origin
	mu      sync.Mutex // guards what follows
	batches []int
}

var _ store.ManyGetter = (*manyOrigin)(nil)

func (o *manyOrigin) GetMany(ctx context.Context, wants []store.Want, slots store.Slots) error {
	o.mu.Lock()
	o.batches = append(o.batches, len(wants))
	o.mu.Unlock()
	return store.GetMany(ctx, struct{ store.Getter }{o.origin}, wants, slots)
}

// TestBatches: what a read misses is fetched together, once, in batches of limited size.
func TestBatches(t *testing.T) {
	image := testimages.Random(1, 1<<20)
	x, from := index(t, image), &manyOrigin{origin: holding(t, image)}
	v := open(t, x, from, Limits{})
	lo, hi := x.Find(100_000), x.Find(119_999)+1
	checkRead(t, v, image, make([]byte, 20_000), 100_000)
	if want := []int{hi - lo}; !slices.Equal(from.batches, want) {
		t.Errorf("the first read's batches have %d chunks, want %d", from.batches, want)
	}
	checkRead(t, v, image, make([]byte, len(image)), 0)
	from.checkOnce(t, x, 0, x.Len())
	if most := slices.Max(from.batches); most != maxBatch {
		t.Errorf("the largest batch has %d chunks, want %d", most, maxBatch)
	}
	checkCache(t, v.cache)
}

// TestBatchesBesideReads reads at random from many goroutines, with batches larger than the cache.
func TestBatchesBesideReads(t *testing.T) {
	image := mixed()
	x := index(t, image)
	for _, limits := range []Limits{{}, {Bytes: 60_000, Fetches: 3}, {Bytes: 1, Fetches: 1}} {
		v := open(t, x, &manyOrigin{origin: holding(t, image)}, limits)
		var wg sync.WaitGroup
		for reader := range 8 {
			wg.Go(func() {
				for i := range 30 {
					off := (reader*37_013 + i*90_001) % (len(image) - 60_000)
					checkRead(t, v, image, make([]byte, 60_000), int64(off))
					checkCache(t, v.cache)
				}
			})
		}
		wg.Wait()
	}
}

// TestBatchFailure: a chunk that cannot be had fails nobody else's read, though it was asked for with others.
func TestBatchFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := testimages.Random(1, 100_000)
		x, from := index(t, image), &manyOrigin{origin: holding(t, image)}
		broken := x.At(x.Len() / 2)
		from.fail[broken.Digest], from.latency = store.ErrUnavailable, time.Second
		v := open(t, x, from, Limits{})
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := v.ReadAt(t.Context(), make([]byte, len(image)), 0); !errors.Is(err, store.ErrUnavailable) {
				t.Errorf("ReadAt of all = %v, want %v", err, store.ErrUnavailable)
			}
		})
		synctest.Wait() // the batch is on its way
		checkRead(t, v, image, make([]byte, broken.Offset), 0)
		checkRead(t, v, image, make([]byte, v.Size()-broken.End()), broken.End())
		wg.Wait()
		if v.ReadResident(make([]byte, 1), broken.Offset) {
			t.Error("ReadResident gives a byte of a chunk that could not be had")
		}
		delete(from.fail, broken.Digest)
		checkRead(t, v, image, make([]byte, len(image)), 0)
	})
}

// TestReadBeforePrefetch: who waits is served before what nobody waits for, also when that includes it.
func TestReadBeforePrefetch(t *testing.T) {
	image := testimages.Random(1, 1<<20)
	x := index(t, image)
	for name, wrap := range map[string]func(*origin) store.Getter{
		"one by one": func(o *origin) store.Getter { return o },
		"together":   func(o *origin) store.Getter { return &manyOrigin{origin: o} },
	} {
		synctest.Test(t, func(t *testing.T) {
			from := holding(t, image)
			from.latency = time.Second
			v := open(t, x, wrap(from), Limits{Bytes: 2 << 20, Fetches: 64})
			mustPrefetch(t, v, 0, 800_000)
			synctest.Wait()
			for _, off := range []int64{790_000, 1_000_000} {
				start := time.Now()
				checkRead(t, v, image, make([]byte, 100), off)
				if took := time.Since(start); took > 2*time.Second {
					t.Errorf("%s: reading at %d beside a prefetch took %v, want at most 2s", name, off, took)
				}
			}
		})
	}
}

func ahead(t *testing.T, chunks, size int64) readAhead {
	t.Helper()
	b, err := blob.NewBuilder(blob.SHA512_256, blob.Params{Min: size, Avg: size, Max: size})
	if err != nil {
		t.Fatal(err)
	}
	for range chunks {
		if _, err := b.Add(size, blob.Digest{}); err != nil {
			t.Fatal(err)
		}
	}
	return readAhead{index: b.Index(), most: 512 << 10}
}

// TestReadAheadNext walks through what is read ahead of reads of 4 KiB, in an image of 64 KiB chunks.
func TestReadAheadNext(t *testing.T) {
	const kib, mib = 1 << 10, 1 << 20
	type step struct{ off, from, to int64 }
	for name, steps := range map[string][]step{
		"in order": {
			{0, 0, 0}, {64 * kib, 128 * kib, 196 * kib}, {256 * kib, 320 * kib, 516 * kib},
			{576 * kib, 640 * kib, 1092 * kib}, {1152 * kib, 1216 * kib, 1668 * kib},
		},
		"at random":       {{5 * mib, 0, 0}, {1 * mib, 0, 0}, {9 * mib, 0, 0}, {3 * mib, 0, 0}},
		"again and again": {{0, 0, 0}, {0, 0, 0}, {0, 0, 0}},
		"backwards":       {{192 * kib, 0, 0}, {128 * kib, 0, 0}, {64 * kib, 0, 0}, {0, 0, 0}},
		"to the end":      {{10*mib - 128*kib, 0, 0}, {10*mib - 64*kib, 10 * mib, 10 * mib}},
		"two at once": {
			{0, 0, 0}, {5 * mib, 0, 0},
			{64 * kib, 128 * kib, 196 * kib}, {5*mib + 64*kib, 5*mib + 128*kib, 5*mib + 196*kib},
		},
		"in another order": {
			{0, 0, 0}, {64 * kib, 128 * kib, 196 * kib}, {60 * kib, 0, 0}, {256 * kib, 320 * kib, 772 * kib},
		},
	} {
		a := ahead(t, 160, 64*kib)
		for i, s := range steps {
			if from, to := a.next(s.off, 4*kib); from != s.from || to != s.to {
				t.Errorf("%s: next(%d KiB) of read %d = %d, %d, want %d, %d KiB",
					name, s.off/kib, i, from/kib, to/kib, s.from/kib, s.to/kib)
			}
		}
	}
}

// TestReadAhead: reading in order waits for few fetches, here and there for one each, and fetches no more.
func TestReadAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := testimages.Random(1, 4<<20)
		x, from := index(t, image), holding(t, image)
		from.latency = time.Second
		v := open(t, x, from, Limits{Fetches: 10_000})
		start := time.Now()
		var got bytes.Buffer
		p := make([]byte, 4096)
		for off := int64(0); off < v.Size(); off += 4096 {
			if !v.ReadResident(p, off) {
				checkRead(t, v, image, p, off)
			}
			got.Write(p)
		}
		if took := time.Since(start); took > 10*time.Second || !bytes.Equal(got.Bytes(), image) {
			t.Errorf("reading in order waited for %v, want at most 10 fetches", took)
		}
		from.checkOnce(t, x, 0, x.Len())

		from = holding(t, image)
		v = open(t, x, from, Limits{})
		for _, off := range []int64{3 << 20, 1 << 20, 2 << 20, 0} {
			checkRead(t, v, image, make([]byte, 1), off)
		}
		synctest.Wait()
		if all, _ := from.asked(); all != 4 {
			t.Errorf("4 bytes here and there took %d chunks, want 4", all)
		}
	})
}
