package supply

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cairn/blob"
	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/store/storetest"
)

// origin is a remote store in a test's time, which can be made to fail.
type origin struct {
	store.Getter
	link *Link

	asked   atomic.Int64
	mu      sync.Mutex // guards the fields below
	latency time.Duration
	fault   error
	silent  bool
}

func newOrigin(t *testing.T, s ...sample) *origin {
	return &origin{Getter: chunksOf(bucketOf(t, s...)), link: NewFixedLink(64), latency: 10 * time.Millisecond}
}

func (o *origin) set(latency time.Duration, fault error, silent bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.latency, o.fault, o.silent = latency, fault, silent
}

func (o *origin) get(ctx context.Context, d blob.Digest, dst []byte) error {
	o.asked.Add(1)
	o.mu.Lock()
	latency, fault, silent := o.latency, o.fault, o.silent
	o.mu.Unlock()
	if silent {
		<-ctx.Done()
		return ctx.Err()
	}
	select {
	case <-time.After(latency):
	case <-ctx.Done():
		return ctx.Err()
	}
	if fault != nil {
		return fault
	}
	return store.GetOne(ctx, o.Getter, d, dst)
}

// Get implements store.Getter.
func (o *origin) Get(ctx context.Context, wants []store.Want, done func(i int, err error)) {
	storetest.GetterFunc(o.get).Get(ctx, wants, done)
}

func (o *origin) member() *member { return &member{from: o, link: o.link} }

// getFor gets a chunk repeatedly for some time, and returns the longest duration of a get.
func getFor(t *testing.T, g store.Getter, s sample, span time.Duration) (longest time.Duration) {
	t.Helper()
	for begun := time.Now(); time.Since(begun) < span; {
		at := time.Now()
		s.wantFrom(t, g)
		longest = max(longest, time.Since(at))
		time.Sleep(10 * time.Millisecond)
	}
	return longest
}

// TestFailover: an unavailable store gets few requests, and regains its place soon after it
// recovers.
func TestFailover(t *testing.T) {
	for name, fault := range map[string]error{
		"away": store.ErrUnavailable, "denied": store.ErrDenied, "broken": errors.New("unexpected"),
	} {
		synctest.Test(t, func(t *testing.T) {
			s := newSample(1, 1000)
			a, b := newOrigin(t, s), newOrigin(t, s)
			g := remotes(a.member(), b.member())
			getFor(t, g, s, time.Second)
			if n := b.asked.Load(); n != 0 {
				t.Errorf("%s: the second store was asked %d times while the first was well", name, n)
			}
			a.set(10*time.Millisecond, fault, false)
			before := a.asked.Load()
			if longest := getFor(t, g, s, 10*time.Minute); longest > 20*time.Millisecond {
				t.Errorf("%s: a chunk took %v, want two answers' time at most", name, longest)
			}
			if n := a.asked.Load() - before; n < 10 || n > 20 {
				t.Errorf("%s: a store that was down for ten minutes was asked %d times, want 10 to 20", name, n)
			}
			a.set(10*time.Millisecond, nil, false)
			getFor(t, g, s, time.Minute+time.Second)
			a.asked.Store(0)
			b.asked.Store(0)
			getFor(t, g, s, time.Second)
			if a.asked.Load() < 40 || b.asked.Load() > 0 {
				t.Errorf("%s: a minute after it came back the first store was asked %d times, the second %d times",
					name, a.asked.Load(), b.asked.Load())
			}
		})
	}
}

// TestFailoverFromSilence: a store that answers nothing costs seconds once, not for every chunk.
func TestFailoverFromSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSample(1, 1000)
		a, b := newOrigin(t, s), newOrigin(t, s)
		g := remotes(a.member(), b.member())
		a.set(0, nil, true)
		var wg sync.WaitGroup
		begun := time.Now()
		for range 64 {
			wg.Go(func() { s.wantFrom(t, g) })
		}
		wg.Wait()
		if took := time.Since(begun); took > 3*time.Second {
			t.Errorf("leaving a silent store took %v, want 3 s at most", took)
		}
		begun = time.Now()
		for range 200 {
			s.wantFrom(t, g)
		}
		if took := time.Since(begun); took > 8*time.Second {
			t.Errorf("200 chunks beside a silent store took %v", took)
		}
	})
}

// TestFailoverAsksUnhealthyLast: only all stores together prove absence, including recently failed
// ones.
func TestFailoverAsksUnhealthyLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, other := newSample(1, 1000), newSample(2, 1000)
		a, b := newOrigin(t, s), newOrigin(t, other)
		g := remotes(a.member(), b.member())
		a.set(0, store.ErrUnavailable, false)
		if err := s.get(t, g); !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrNotFound) {
			t.Errorf("Get = %v, want ErrUnavailable", err)
		}
		if err := s.get(t, g); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("Get = %v, want ErrUnavailable", err)
		}
		a.set(0, nil, false)
		s.wantFrom(t, g)
	})
}

// TestFailoverAgain: a failed store supplies a chunk that no other has while it is asked last, and
// fails again.
func TestFailoverAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, own := newSample(1, 1000), newSample(2, 1000)
		a, b := newOrigin(t, s, own), newOrigin(t, s)
		g := remotes(a.member(), b.member())
		a.set(10*time.Millisecond, store.ErrUnavailable, false)
		getFor(t, g, s, 3*time.Minute)
		a.set(10*time.Millisecond, nil, false)
		own.wantFrom(t, g)
		a.set(10*time.Millisecond, store.ErrUnavailable, false)
		a.asked.Store(0)
		getFor(t, g, s, 20*time.Second)
		if n := a.asked.Load(); n > 10 {
			t.Errorf("a store that fails again was asked %d times in 20 s, want 10 at most", n)
		}
	})
}

// TestAbsentFromTheSecondOnly: the second store, asked meanwhile, proves absence before the first
// one fails.
func TestAbsentFromTheSecondOnly(t *testing.T) {
	for name, fault := range map[string]error{"away": store.ErrUnavailable, "denied": store.ErrDenied, "broken": errors.New("unexpected")} {
		synctest.Test(t, func(t *testing.T) {
			s, other := newSample(1, 1000), newSample(2, 1000)
			a, b := newOrigin(t, s), newOrigin(t, other)
			a.set(10*time.Second, fault, false)
			err := s.get(t, remotes(a.member(), b.member()))
			if !errors.Is(err, fault) || errors.Is(err, store.ErrNotFound) {
				t.Errorf("%s: Get = %v, want what the first store said and not ErrNotFound", name, err)
			}
		})
	}
}

// TestHedgedRequest: a lost answer costs little while others arrive.
func TestHedgedRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSample(1, 1000)
		a := newOrigin(t, s)
		var n atomic.Int64
		lost := storetest.GetterFunc(func(ctx context.Context, d blob.Digest, dst []byte) error {
			if n.Add(1)%50 == 0 {
				<-ctx.Done()
				return ctx.Err()
			}
			return a.get(ctx, d, dst)
		})
		g := remotes(&member{from: lost, link: NewLink(64)})
		if longest := getFor(t, g, s, time.Minute); longest > 500*time.Millisecond {
			t.Errorf("a chunk took %v where one answer in 50 is lost, want half a second at most", longest)
		}
	})
}

// TestHedgesAreFew: a store that becomes slow does not get twice the requests.
func TestHedgesAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSample(1, 1000)
		a := newOrigin(t, s)
		g := remotes(a.member())
		getFor(t, g, s, 10*time.Second)
		a.set(5*time.Second, nil, false)
		a.asked.Store(0)
		const count = 400
		var wg sync.WaitGroup
		for range count {
			wg.Go(func() { s.wantFrom(t, g) })
		}
		wg.Wait()
		if n := a.asked.Load(); n > count*107/100 {
			t.Errorf("%d requests for %d chunks of a slow store, want 7 %% more at most", n, count)
		}
	})
}

// TestHedgeLeavesNothing: nothing writes to the caller's memory after Get returns.
func TestHedgeLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSample(1, 1000)
		var n atomic.Int64
		late := storetest.GetterFunc(func(ctx context.Context, d blob.Digest, dst []byte) error {
			if n.Add(1) > 1 {
				return store.GetOne(ctx, chunksOf(bucketOf(t, s)), d, dst)
			}
			<-ctx.Done()
			time.Sleep(time.Second)
			clear(dst)
			return ctx.Err()
		})
		s.wantFrom(t, remotes(&member{from: late, link: NewFixedLink(4)}))
	})
}

func TestLinkThrottledByTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSample(1, 1000)
		link := NewLink(64)
		busy := &store.UnavailableError{Err: errors.New("429"), After: time.Second, Throttled: true}
		r := storetest.Faulty(bucketOf(t, s), storetest.First(1), storetest.Fails(busy))
		before := link.Limit()
		g := retrier{remotes(&member{from: chunksOf(r), link: link}), store.Policy{}}
		begun := time.Now()
		s.wantFrom(t, g)
		if took := time.Since(begun); took < time.Second || link.Limit() >= before {
			t.Errorf("a refusal cost %v and left %d of %d at once, want a second, and fewer", took, link.Limit(), before)
		}
	})
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
		t.Run(name, func(t *testing.T) { s.wantFrom(t, locals(getters...)) })
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
		err := s.get(t, locals(test.getters...))
		for _, want := range test.want {
			if !errors.Is(err, want) || errors.Is(err, test.not) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: Get = %v, want %v and not %v", name, err, want, test.not)
			}
		}
	}
}

func TestFallbackStopsWhenCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	first := storetest.GetterFunc(func(context.Context, blob.Digest, []byte) error {
		cancel()
		return store.ErrNotFound
	})
	second := storetest.GetterFunc(func(context.Context, blob.Digest, []byte) error {
		t.Error("the second store was asked")
		return nil
	})
	err := store.GetOne(ctx, locals(first, second), blob.Digest{}, nil)
	if !errors.Is(err, context.Canceled) || errors.Is(err, store.ErrNotFound) {
		t.Errorf("Get = %v, want context.Canceled", err)
	}
}
