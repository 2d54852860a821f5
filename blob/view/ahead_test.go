package view

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"cairn/blob"
	"cairn/blob/view/fetch"
	"cairn/testimages"
)

// TestReadBeforePrefetch checks that a demand fetch overtakes queued prefetches, also if its chunk is one of them.
func TestReadBeforePrefetch(t *testing.T) {
	image := testimages.Random(1, 1<<20)
	x := index(t, image)
	synctest.Test(t, func(t *testing.T) {
		from := newOrigin(t, image)
		from.latency = time.Second
		v := newView(t, x, from, fetch.Options{Bytes: 2 << 20, Fetches: 64})
		mustPrefetch(t, v, 0, 800_000)
		synctest.Wait()
		for _, off := range []int64{790_000, 1_000_000} {
			start := time.Now()
			checkRead(t, v, image, make([]byte, 100), off)
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("reading at %d beside a prefetch took %v, want at most 2s", off, took)
			}
		}
	})
}

func readsAhead(t *testing.T, chunks, size int64) readAhead {
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

// TestReadAheadRanges checks the read-ahead of each read of several sequences, with reads of 4 KiB and chunks of 64
// KiB.
func TestReadAheadRanges(t *testing.T) {
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
		"many readers": {
			{0, 0, 0}, {0, 0, 0}, {64 * kib, 128 * kib, 196 * kib}, {64 * kib, 0, 0}, {64 * kib, 0, 0}, {256 * kib, 320 * kib, 516 * kib},
		},
		"two at once": {
			{0, 0, 0}, {5 * mib, 0, 0},
			{64 * kib, 128 * kib, 196 * kib}, {5*mib + 64*kib, 5*mib + 128*kib, 5*mib + 196*kib},
		},
		"in another order": {
			{0, 0, 0}, {64 * kib, 128 * kib, 196 * kib}, {60 * kib, 0, 0}, {256 * kib, 320 * kib, 516 * kib},
		},
	} {
		a := readsAhead(t, 160, 64*kib)
		for i, s := range steps {
			if from, to := a.noteRead(s.off, 4*kib, maxAhead); from != s.from || to != s.to {
				t.Errorf("%s: noteRead(%d KiB) of read %d = %d, %d, want %d, %d KiB",
					name, s.off/kib, i, from/kib, to/kib, s.from/kib, s.to/kib)
			}
		}
	}
}

// wideLink is a link with a large bandwidth-delay product.
type wideLink struct{}

func (wideLink) Product() int64             { return maxAhead }
func (wideLink) Budget(time.Duration) int64 { return 4 * maxAhead }

// TestReadAhead checks that sequential reads block on few fetches and fetch each chunk once. Random reads fetch one
// chunk each.
func TestReadAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := testimages.Random(1, 4<<20)
		x, from := index(t, image), newOrigin(t, image)
		from.latency = time.Second
		cache := fetch.New(t.Context(), fetch.Options{Fetches: 10_000})
		defer cache.Close()
		v := New(x, cache.NewSource(from, fetch.SourceOptions{Link: wideLink{}}), Options{})
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
			t.Errorf("sequential reads took %v, want at most 10 fetches of 1s, and the image's bytes", took)
		}
		from.checkOnce(t, x, 0, x.Len())

		from = newOrigin(t, image)
		v = newView(t, x, from, fetch.Options{})
		for _, off := range []int64{3 << 20, 1 << 20, 2 << 20, 0} {
			checkRead(t, v, image, make([]byte, 1), off)
		}
		synctest.Wait()
		if all, _ := from.countRequests(); all != 4 {
			t.Errorf("4 random reads of a byte fetched %d chunks, want 4", all)
		}
	})
}
