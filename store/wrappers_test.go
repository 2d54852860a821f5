package store_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cairn/blob"
	"cairn/store"
	"cairn/store/mem"
	"cairn/store/storetest"
)

// getter is a Getter made of a function.
type getter func(ctx context.Context, d blob.Digest, dst []byte) error

func (g getter) Get(ctx context.Context, d blob.Digest, dst []byte) error { return g(ctx, d, dst) }

func failing(err error) store.Getter {
	return getter(func(context.Context, blob.Digest, []byte) error { return err })
}

// sources are getters on this machine.
func sources(getters ...store.Getter) (list []store.Source) {
	for _, g := range getters {
		list = append(list, store.Source{Getter: g})
	}
	return list
}

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
			var counter store.Counter
			far := chunksOf(store.Meter(bucketOf(t, s), &counter))
			w := newWriter(t, test.keep, store.WriterOptions{})
			c := store.Cache(chunksOf(test.near), w, far, noFailure(t))
			s.wantFrom(t, c)
			s.wantFrom(t, chunksOf(test.keep))
			s.wantFrom(t, c)
			if n := counter.Objects.Load(); name != "failing" && n != 1 {
				t.Errorf("far was read %d times, want once", n)
			}
		})
	}
}

// TestCacheOnFullDisk: a near store that cannot be written is no reason to fail, is told once, is left alone for
// a while, and then tried again.
func TestCacheOnFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newSample(1, 1000), newSample(2, 1000)
		full := errors.New("disk full")
		w := newWriter(t, storetest.FaultyWrites(new(mem.Bucket), storetest.First(2), full), store.WriterOptions{})
		var told []error
		near := chunksOf(new(mem.Bucket))
		c := store.Cache(near, w, chunksOf(bucketOf(t, a, b)), func(err error) { told = append(told, err) })
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

// TestCacheTakesOnlyProvenBytes: what far cannot supply is not kept.
func TestCacheTakesOnlyProvenBytes(t *testing.T) {
	s := newSample(1, 1000)
	near := new(mem.Bucket)
	w := newWriter(t, near, store.WriterOptions{})
	far := chunksOf(storetest.Faulty(bucketOf(t, s), storetest.Always, storetest.FlipsBit))
	c := store.Cache(chunksOf(near), w, far, noFailure(t))
	if _, ok := errors.AsType[*store.CorruptError](s.get(t, c)); !ok {
		t.Error("Get is no CorruptError")
	}
	if has, err := w.Has(t.Context(), s.digest); has || err != nil {
		t.Errorf("Has = %v, %v; want false", has, err)
	}
}

// TestCacheCancelledWhileKeeping: the chunk is good, and the near store is not to blame.
func TestCacheCancelledWhileKeeping(t *testing.T) {
	s := newSample(1, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	far := getter(func(_ context.Context, _ blob.Digest, dst []byte) error {
		copy(dst, s.data)
		cancel()
		return nil
	})
	near := new(mem.Bucket)
	c := store.Cache(chunksOf(near), newWriter(t, near, store.WriterOptions{}), far, noFailure(t))
	if err := c.Get(ctx, s.digest, make([]byte, len(s.data))); err != nil {
		t.Errorf("Get = %v", err)
	}
	s.wantFrom(t, c)
	s.wantFrom(t, chunksOf(near))
}

func TestFallback(t *testing.T) {
	s := newSample(1, 1000)
	good, absent := chunksOf(bucketOf(t, s)), chunksOf(new(mem.Bucket))
	corrupt := failing(&store.CorruptError{Name: "x", Err: errors.New("wrong")})
	down := failing(store.ErrUnavailable)
	for name, getters := range map[string][]store.Getter{
		"first": {good, failing(errors.New("asked in vain"))}, "absent": {absent, good},
		"corrupt": {corrupt, good}, "down": {down, good}, "last": {absent, corrupt, down, good},
	} {
		t.Run(name, func(t *testing.T) { s.wantFrom(t, store.Fallback(sources(getters...)...)) })
	}
	for name, test := range map[string]struct {
		getters []store.Getter
		want    []error
		not     error
	}{
		"none":       {nil, []error{store.ErrNotFound}, store.ErrUnavailable},
		"all absent": {[]store.Getter{absent, absent}, []error{store.ErrNotFound}, store.ErrUnavailable},
		"one down":   {[]store.Getter{absent, down, absent}, []error{store.ErrUnavailable}, store.ErrNotFound},
		"two fail": {[]store.Getter{failing(store.ErrDenied), absent, down},
			[]error{store.ErrDenied, store.ErrUnavailable}, store.ErrNotFound},
	} {
		err := s.get(t, store.Fallback(sources(test.getters...)...))
		for _, want := range test.want {
			if !errors.Is(err, want) || errors.Is(err, test.not) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: Get = %v, want %v and not %v", name, err, want, test.not)
			}
		}
	}
}

func TestFallbackStopsWhenCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	first := getter(func(context.Context, blob.Digest, []byte) error {
		cancel()
		return store.ErrNotFound
	})
	second := getter(func(context.Context, blob.Digest, []byte) error {
		t.Error("the second store was asked")
		return nil
	})
	err := store.Fallback(sources(first, second)...).Get(ctx, blob.Digest{}, nil)
	if !errors.Is(err, context.Canceled) || errors.Is(err, store.ErrNotFound) {
		t.Errorf("Get = %v, want context.Canceled", err)
	}
}

func TestMeter(t *testing.T) {
	b := new(mem.Bucket)
	mustWrite(t, b, "x", make([]byte, 1000))
	var c store.Counter
	r := store.Meter(b, &c)
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if _, err := r.Read(t.Context(), "x", []byte("before"), 1000); err != nil {
				t.Error(err)
			}
			if _, err := r.Read(t.Context(), "absent", nil, 1000); err == nil {
				t.Error("Read of an absent object succeeded")
			}
		})
	}
	wg.Wait()
	if c.Objects.Load() != 10 || c.Bytes.Load() != 10_000 {
		t.Errorf("counted %d objects, %d bytes; want 10, 10000", c.Objects.Load(), c.Bytes.Load())
	}
}
