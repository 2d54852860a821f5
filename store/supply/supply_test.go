package supply

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cairn/blob"
	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/store/local"
	"cairn/store/locate"
	"cairn/store/storetest"
)

// TestMany: each want has one outcome through every wrapper, whichever stores hold the chunk, or
// none.
func TestMany(t *testing.T) {
	var samples []sample
	for i := range 60 {
		samples = append(samples, newSample(uint64(i), 1000+i))
	}
	first, second := samples[:25], samples[20:50]
	list := wants(samples...)
	stores := map[string]*fallback{
		"local":  locals(chunksOf(bucketOf(t, first...)), chunksOf(bucketOf(t, second...))),
		"remote": remotes(newOrigin(t, first...).member(), newOrigin(t, second...).member()),
	}
	for name, f := range stores {
		near := bucketOf(t, samples[10:15]...)
		keep := newWriter(t, near)
		c := Cached(retrier{f, store.Policy{}}, chunksOf(near), keep, noFailure(t))
		for range 2 {
			for i, err := range outcomes(t, t.Context(), c, list) {
				if i < 50 && err != nil || i >= 50 && !errors.Is(err, store.ErrNotFound) {
					t.Errorf("%s: chunk %d: %v", name, i, err)
				}
			}
			if err := keep.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		for i, err := range outcomes(t, t.Context(), chunksOf(near), list) {
			if (err == nil) != (i < 50) {
				t.Errorf("%s: the cache has chunk %d: %v", name, i, err)
			}
		}
	}
}

// TestManyFail: only the wants for which a store is unavailable are retried, until patience ends.
func TestManyFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var samples []sample
		for i := range 20 {
			samples = append(samples, newSample(uint64(i), 1000))
		}
		good := chunksOf(bucketOf(t, samples...))
		var asked atomic.Int64
		g := storetest.GetterFunc(func(ctx context.Context, d blob.Digest, dst []byte) error {
			asked.Add(1)
			switch {
			case d == samples[3].digest:
				return store.ErrUnavailable
			case d == samples[4].digest:
				return store.ErrDenied
			}
			return store.GetOne(ctx, good, d, dst)
		})
		begun := time.Now()
		for i, err := range outcomes(t, t.Context(), New(store.Policy{Patience: 5 * time.Second}, Options{}, g), wants(samples...)) {
			want := map[int]error{3: store.ErrUnavailable, 4: store.ErrDenied}[i]
			if !errors.Is(err, want) {
				t.Errorf("chunk %d: %v, want %v", i, err, want)
			}
		}
		if took, n := time.Since(begun), asked.Load(); took != 5*time.Second || n < 24 || n > 40 {
			t.Errorf("%d requests in %v, want 20 and a few more in five seconds", n, took)
		}
	})
}

// TestManyCancelled: every want has an outcome when the context ends.
func TestManyCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSample(1, 1000)
		a := newOrigin(t, s)
		a.set(0, nil, true)
		list := make([]store.Want, 300)
		for i := range list {
			list[i] = wants(s)[0]
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		near := new(mem.Bucket)
		c := Cached(New(store.Policy{}, Options{}, a), chunksOf(near), newWriter(t, near), noFailure(t))
		for i, err := range outcomes(t, ctx, c, list) {
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("want %d: %v", i, err)
			}
		}
	})
}

// TestManySilent: the first final failure of many wants ends the others, even while they wait.
func TestManySilent(t *testing.T) {
	for name, o := range map[string]Options{"as it is": {}, "no second requests": {Budget: 1}} {
		synctest.Test(t, func(t *testing.T) {
			silent := storetest.GetterFunc(func(ctx context.Context, _ blob.Digest, _ []byte) error {
				select {
				case <-time.After(30 * time.Second):
					return &store.UnavailableError{Err: errors.New("no answer")}
				case <-ctx.Done():
					return ctx.Err()
				}
			})
			s, begun := newSample(1, 1000), time.Now()
			list := make([]store.Want, 60)
			for i := range list {
				list[i] = wants(s)[0]
			}
			err := store.GetAll(t.Context(), New(store.Policy{Patience: 2 * time.Second}, o, silent), list, nil)
			if took := time.Since(begun); !errors.Is(err, store.ErrUnavailable) || took > 33*time.Second {
				t.Errorf("%s: GetAll = %v after %v, want ErrUnavailable after 32 s", name, err, took)
			}
			if o.Budget > 0 {
				return
			}
			good := chunksOf(bucketOf(t, s))
			begun = time.Now()
			err = store.GetAll(t.Context(), New(store.Policy{}, o, silent, good), list, nil)
			if took := time.Since(begun); err != nil || took > 25*time.Second {
				t.Errorf("%s: GetAll with a second store = %v after %v", name, err, took)
			}
		})
	}
}

// TestManyLimited: a store never gets more concurrent requests than its limit, however many chunks
// are wanted.
func TestManyLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSample(1, 1000)
		var now, most atomic.Int64
		g := storetest.GetterFunc(func(ctx context.Context, d blob.Digest, dst []byte) error {
			n := now.Add(1)
			defer now.Add(-1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			time.Sleep(10 * time.Millisecond)
			copy(dst, s.data)
			return nil
		})
		list := make([]store.Want, 100)
		for i := range list {
			list[i] = wants(s)[0]
		}
		outcomes(t, t.Context(), New(store.Policy{}, Options{Requests: 7}, g), list)
		if most.Load() != 7 {
			t.Errorf("%d requests at once, want 7", most.Load())
		}
	})
}

func locations(t *testing.T, paths ...string) (list []locate.Location) {
	t.Helper()
	for _, p := range paths {
		at, err := locate.Parse(p)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, at)
	}
	return list
}

// storeIn makes a store of chunks in a directory.
func storeIn(t *testing.T, samples ...sample) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "x.castr")
	b, err := local.Create(dir, local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w := newWriter(t, b)
	for _, s := range samples {
		if _, err := w.Put(t.Context(), s.digest, s.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestOpen(t *testing.T) {
	a, b := newSample(1, 1000), newSample(2, 5000)
	one, two, gone := storeIn(t, a), storeIn(t, b), filepath.Join(t.TempDir(), "gone")
	var left []error
	o := Options{LeftOut: func(err error) { left = append(left, err) }}
	s, err := Open([][]locate.Location{locations(t, gone, one), locations(t, two)}, locate.Access{}, blob.SHA512_256, o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	a.wantFrom(t, s)
	b.wantFrom(t, s)
	if len(left) != 1 || !errors.Is(left[0], store.ErrNotFound) {
		t.Errorf("left out: %v, want the store that is not there", left)
	}
	if objects, bytes := s.Downloaded(); objects != 2 || bytes <= 0 || s.Far() || s.Requests() != 32 {
		t.Errorf("downloaded %d objects, %d bytes; far %v, %d requests", objects, bytes, s.Far(), s.Requests())
	}
	q, err := s.Quote(t.Context(), []blob.Digest{b.digest, a.digest})
	if err != nil {
		t.Fatal(err)
	}
	requests, bytes := q.Cost([][]blob.Digest{{b.digest, a.digest}, {a.digest}})
	if sizes := [2]int64{q.Size(b.digest), q.Size(a.digest)}; sizes[0] <= sizes[1] || sizes[1] == 0 || requests != 3 || bytes != sizes[0]+2*sizes[1] {
		t.Errorf("sizes %v, and %d bytes in %d requests", sizes, bytes, requests)
	}
	if _, err := s.Quote(t.Context(), []blob.Digest{{}}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Quote of a chunk that is nowhere = %v", err)
	}
	for _, groups := range [][][]locate.Location{{locations(t, gone)}, {locations(t, one), locations(t, gone, gone)}} {
		if _, err := Open(groups, locate.Access{}, blob.SHA512_256, Options{}); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("Open = %v, want ErrNotFound", err)
		}
	}
}

// TestOpenBudget: all stores share the budget, and cache hits do not count.
func TestOpenBudget(t *testing.T) {
	a, b := newSample(1, 3000), newSample(2, 3000)
	one, two := storeIn(t, a), storeIn(t, b)
	var size int64
	err := filepath.WalkDir(one, func(_ string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			info, _ := d.Info()
			size += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open([][]locate.Location{locations(t, one), locations(t, two)}, locate.Access{}, blob.SHA512_256, Options{Budget: size + 10})
	if err != nil {
		t.Fatal(err)
	}
	near, closed := new(mem.Bucket), false
	s.AddCache(chunksOf(near), newWriter(t, near), noFailure(t), func() { closed = true })
	for range 3 {
		a.wantFrom(t, s)
	}
	if err := b.get(t, s); !errors.Is(err, ErrBudget) {
		t.Errorf("Get = %v, want ErrBudget", err)
	}
	if err := s.GetUncached(t.Context(), a.digest, make([]byte, len(a.data))); !errors.Is(err, ErrBudget) {
		t.Errorf("GetUncached = %v, want ErrBudget", err)
	}
	if s.Close(); !closed {
		t.Error("Close did not close the cache")
	}
}

// TestBudgetOfLink: prefetch may fill the link, within the delay that a reader accepts.
func TestBudgetOfLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLink(512)
		if l.Budget(50*time.Millisecond) != firstBudget {
			t.Errorf("%d bytes before anything is known", l.Budget(50*time.Millisecond))
		}
		const rate = 12_500_000 // 100 Mbit/s
		through(t, l, &wire{latency: always(40 * time.Millisecond), rate: rate}, 10*rate)
		product, want := l.Product(), int64(rate*40/1000)
		if product < want*8/10 || product > want*15/10 {
			t.Errorf("the link holds %d bytes, want about %d", product, want)
		}
		budget := l.Budget(50 * time.Millisecond)
		if budget < want*15/10 || budget > want*35/10 {
			t.Errorf("%d bytes may be prefetched, want about %d", budget, want*90/40)
		}
	})
}

// TestRateOfPauses: a reader's pauses between requests do not lower the measured rate.
func TestRateOfPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLink(64)
		w := &wire{latency: always(10 * time.Millisecond), rate: 1_250_000}
		through(t, l, w, 5_000_000)
		for range 200 {
			leave, err := l.acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			w.get(4000)
			leave(4000, nil)
			time.Sleep(25 * time.Millisecond)
		}
		if got := l.Product(); got < 1_250_000*12/1000 {
			t.Errorf("the link holds %d bytes after five seconds of single reads, want 12 ms at 1.25 MB/s", got)
		}
	})
}

// TestBudgetFillsLinks: prefetch within the budget fills links of all kinds, and delays a read by
// little more than allowed.
func TestBudgetFillsLinks(t *testing.T) {
	const size, fetches, delay = 64 << 10, 2000, 50 * time.Millisecond
	for _, c := range []struct {
		trip time.Duration
		rate float64 // bytes a second
	}{
		{20 * time.Millisecond, 12.5e6}, {5 * time.Millisecond, 125e6}, {80 * time.Millisecond, 12.5e6},
		{300 * time.Millisecond, 12.5e6}, {time.Millisecond, 125e6}, {40 * time.Millisecond, 1.25e6},
	} {
		synctest.Test(t, func(t *testing.T) {
			l, w := NewLink(512), &wire{latency: always(c.trip), rate: c.rate}
			begun := time.Now()
			var flying atomic.Int64
			var wg sync.WaitGroup
			for range fetches {
				for flying.Load() > 0 && (flying.Load()+1)*size > l.Budget(delay) {
					time.Sleep(100 * time.Microsecond)
				}
				flying.Add(1)
				wg.Go(func() {
					leave, err := l.acquire(t.Context())
					if err != nil {
						t.Error(err)
						return
					}
					w.get(size)
					leave(size, nil)
					flying.Add(-1)
				})
			}
			wg.Wait()
			used := fetches * size / time.Since(begun).Seconds() / c.rate
			waits := time.Duration(float64(l.Budget(delay))/c.rate*float64(time.Second)) - c.trip
			t.Logf("%v, %.2f MB/s: %.0f %% of the link, a read waits for %v", c.trip, c.rate/1e6, 100*used, waits)
			if used < 0.8 {
				t.Errorf("%v, %.2f MB/s: only %.0f %% of the link are used", c.trip, c.rate/1e6, 100*used)
			}
			if most := 2*delay + 10*time.Millisecond; waits > max(most, time.Duration(minBudget/c.rate*float64(time.Second))) {
				t.Errorf("%v, %.2f MB/s: a read waits for %v behind others", c.trip, c.rate/1e6, waits)
			}
		})
	}
}
