package supply

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"cairn/blob"
	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/store/storetest"
)

func noFailure(t *testing.T) func(error) {
	return func(err error) { t.Errorf("failure reported: %v", err) }
}

func TestCache(t *testing.T) {
	s := newSample(1, 10_000)
	bad := bucketOf(t, s)
	mustWrite(t, bad, s.packed(), []byte("damaged"))
	empty := new(mem.Bucket)
	for name, test := range map[string]struct {
		near store.Reader
		keep store.Bucket
	}{
		"absent":  {empty, empty},
		"corrupt": {bad, bad},
		"failing": {storetest.Faulty(empty, storetest.Always, storetest.Fails(store.ErrDenied)), new(mem.Bucket)},
	} {
		t.Run(name, func(t *testing.T) {
			var counter Counter
			far := chunksOf(meter{bucketOf(t, s), &counter})
			w := newWriter(t, test.keep)
			c := &cache{near: chunksOf(test.near), keep: w, far: far, failed: noFailure(t)}
			s.wantFrom(t, c)
			s.wantFrom(t, chunksOf(test.keep))
			s.wantFrom(t, c)
			if n := counter.Objects.Load(); name != "failing" && n != 1 {
				t.Errorf("far was read %d times, want once", n)
			}
		})
	}
}

// TestCacheOnFullDisk: a near store that cannot be written fails no Get, is reported once, and is
// tried again after a pause.
func TestCacheOnFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newSample(1, 1000), newSample(2, 1000)
		full := errors.New("disk full")
		w := newWriter(t, storetest.FaultyWrites(new(mem.Bucket), storetest.First(2), full))
		var told []error
		near := chunksOf(new(mem.Bucket))
		c := &cache{near: near, keep: w, far: chunksOf(bucketOf(t, a, b)), failed: func(err error) { told = append(told, err) }}
		for range 2 {
			for _, s := range []sample{a, b, a} {
				s.wantFrom(t, c)
			}
			if len(told) != 1 || !errors.Is(told[0], full) {
				t.Errorf("told %v, want the failure once", told)
			}
			if has, err := w.Has(t.Context(), b.digest); has || err != nil {
				t.Errorf("the near store was written again at once: %v, %v", has, err)
			}
			time.Sleep(10 * time.Second)
		}
		b.wantFrom(t, c)
		if has, err := w.Has(t.Context(), b.digest); !has || err != nil {
			t.Errorf("the near store is not written again after a while: %v, %v", has, err)
		}
	})
}

// TestCacheTakesOnlyProvenBytes: a chunk that far fails to supply is not kept.
func TestCacheTakesOnlyProvenBytes(t *testing.T) {
	s := newSample(1, 1000)
	near := new(mem.Bucket)
	w := newWriter(t, near)
	far := chunksOf(storetest.Faulty(bucketOf(t, s), storetest.Always, storetest.FlipsBit))
	c := &cache{near: chunksOf(near), keep: w, far: far, failed: noFailure(t)}
	if _, ok := errors.AsType[*store.CorruptError](s.get(t, c)); !ok {
		t.Error("Get is no CorruptError")
	}
	if has, err := w.Has(t.Context(), s.digest); has || err != nil {
		t.Errorf("Has = %v, %v; want false", has, err)
	}
}

// TestCacheCancelledWhileKeeping: the chunk is returned, and no failure of the near store is
// reported.
func TestCacheCancelledWhileKeeping(t *testing.T) {
	s := newSample(1, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	far := storetest.GetterFunc(func(_ context.Context, _ blob.Digest, dst []byte) error {
		copy(dst, s.data)
		cancel()
		return nil
	})
	near := new(mem.Bucket)
	c := &cache{near: chunksOf(near), keep: newWriter(t, near), far: far, failed: noFailure(t)}
	if err := store.GetOne(ctx, c, s.digest, make([]byte, len(s.data))); err != nil {
		t.Errorf("Get = %v", err)
	}
	s.wantFrom(t, c)
	s.wantFrom(t, chunksOf(near))
}
