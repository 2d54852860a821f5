package supply

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cairn/store"
)

// wire simulates the path to a store: each answer takes the latency, and then its turn on the wire.
type wire struct {
	latency func() time.Duration
	rate    float64 // bytes a second

	mu   sync.Mutex // guards free
	free time.Time  // when the wire is free
}

func (w *wire) get(bytes int) {
	time.Sleep(w.latency())
	w.mu.Lock()
	if now := time.Now(); w.free.Before(now) {
		w.free = now
	}
	w.free = w.free.Add(time.Duration(float64(bytes) / w.rate * float64(time.Second)))
	until := w.free
	w.mu.Unlock()
	time.Sleep(time.Until(until))
}

func always(d time.Duration) func() time.Duration { return func() time.Duration { return d } }

// varying returns the latency of an object store: seldom short, sometimes very long.
func varying() time.Duration {
	return time.Duration((12 + 24*rand.ExpFloat64()) * float64(time.Millisecond))
}

// through gets total bytes in answers of 4 to 50 KB through a link as fast as it allows, and
// returns the duration.
func through(t *testing.T, l *Link, w *wire, total int) time.Duration {
	t.Helper()
	r := rand.New(rand.NewPCG(3, 4))
	begun := time.Now()
	var wg sync.WaitGroup
	slots := make(chan struct{}, 512)
	for total > 0 {
		bytes := 4000 + r.IntN(46_000)
		total -= bytes
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			release, err := l.acquire(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			w.get(bytes)
			release(bytes, nil)
		})
	}
	wg.Wait()
	return time.Since(begun)
}

// TestLinkFillsLinks: the in-flight limit fills links of every kind, without much queueing.
func TestLinkFillsLinks(t *testing.T) {
	const mbit, ms = 125_000, time.Millisecond
	for name, c := range map[string]struct {
		latency     func() time.Duration
		rate        float64
		seconds     float64 // worth of data
		share       float64 // of the link, at least
		least, most int     // the limit in the end
	}{
		"40 ms 100 Mbit/s":    {always(40 * ms), 100 * mbit, 10, 0.95, 18, 120},
		"5 ms 1 Gbit/s":       {always(5 * ms), 1000 * mbit, 3, 0.95, 20, 130},
		"100 ms 1 Gbit/s":     {always(100 * ms), 1000 * mbit, 20, 0.9, 250, 512},
		"100 ms 5 Mbit/s":     {always(100 * ms), 5 * mbit, 30, 0.95, 4, 32},
		"1 ms 1 Mbit/s":       {always(ms), mbit, 60, 0.98, 4, 24},
		"object store 1 Gbit": {varying, 1000 * mbit, 30, 0.85, 60, 512},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := NewLink(512)
				took := through(t, l, &wire{latency: c.latency, rate: c.rate}, int(c.rate*c.seconds))
				share := c.seconds / took.Seconds()
				t.Logf("%.1f %% of the link, %d at once", 100*share, l.Limit())
				if share < c.share {
					t.Errorf("%.1f %% of the link were used, want %.0f %%", 100*share, 100*c.share)
				}
				if n := l.Limit(); n < c.least || n > c.most {
					t.Errorf("%d at once in the end, want %d to %d", n, c.least, c.most)
				}
			})
		})
	}
}

// TestLinkNoticesAFasterLink: the estimates of a slow link are revised when it becomes faster.
func TestLinkNoticesAFasterLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLink(512)
		w := &wire{latency: always(40 * time.Millisecond), rate: 625_000}
		through(t, l, w, 5_000_000)
		w.rate = 12_500_000
		took := through(t, l, w, 125_000_000)
		if share := 10 / took.Seconds(); share < 0.85 {
			t.Errorf("%.1f %% of the faster link were used, want 85 %%", 100*share)
		}
	})
}

func TestLinkThrottled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLink(64)
		w := &wire{latency: always(10 * time.Millisecond), rate: 1e9}
		through(t, l, w, 20_000_000)
		before := l.Limit()
		release, err := l.acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		release(0, &store.UnavailableError{Throttled: true})
		if got := l.Limit(); got != before/2 {
			t.Errorf("the limit is %d after a refusal, was %d, want half", got, before)
		}
		through(t, l, w, 40_000_000)
		if got := l.Limit(); got < before*3/4 {
			t.Errorf("the limit is %d long after a refusal, was %d", got, before)
		}
	})
}

// TestLinkThrottledAtFirst: a store that throttles before any measurement gets more requests again
// later.
func TestLinkThrottledAtFirst(t *testing.T) {
	for refusals := range 5 {
		synctest.Test(t, func(t *testing.T) {
			l := NewLink(64)
			for range refusals {
				release, err := l.acquire(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				release(0, &store.UnavailableError{Throttled: true})
			}
			through(t, l, &wire{latency: always(10 * time.Millisecond), rate: 1e9}, 20_000_000)
			if got := l.Limit(); got < 32 {
				t.Errorf("the limit is %d long after %d refusals", got, refusals)
			}
		})
	}
}

func TestFixedLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewFixedLink(3)
		took := through(t, l, &wire{latency: always(time.Second), rate: 1e12}, 27_000*30)
		if l.Limit() != 3 || took < 9*time.Second {
			t.Errorf("a link for 3 let %d in, and took %v", l.Limit(), took)
		}
	})
}

// TestLinkCancelled: a cancelled waiter takes no other waiter's turn.
func TestLinkCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewFixedLink(1)
		release, err := l.acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				ctx := ctx
				if i%2 == 0 {
					ctx = t.Context()
				}
				release, err := l.acquire(ctx)
				switch {
				case err == nil:
					release(1, nil)
				case !errors.Is(err, context.Canceled) || i%2 == 0:
					t.Errorf("enter = %v", err)
				}
			})
		}
		synctest.Wait()
		go cancel()
		go release(1, nil)
		wg.Wait()
		if l.model.inFlight != 0 || len(l.waiters) != 0 {
			t.Errorf("%d in flight and %d waiting in the end, want none", l.model.inFlight, len(l.waiters))
		}
	})
}

// TestTypicalLatency: the mean of a few varying answers gets a large allowance, of many a small
// one, and of equal ones none.
func TestTypicalLatency(t *testing.T) {
	after := func(answers int, times ...time.Duration) float64 {
		p := newModel(512)
		p.limit = answers
		start := time.Unix(0, 0)
		p.startRound(start)
		for i := range answers - 1 {
			p.addAnswer(start.Add(times[i%len(times)]), start, 1000, false)
		}
		return p.typicalLatency() * 1000
	}
	const ms = time.Millisecond
	for _, c := range []struct {
		got, least, most float64 // milliseconds
	}{
		{after(7, 10*ms, 20*ms), 17, 19}, {after(1001, 10*ms, 20*ms), 15, 15.5}, {after(7, 40*ms), 40, 40.001},
	} {
		if c.got < c.least || c.got > c.most {
			t.Errorf("typicalLatency = %.2f ms, want %v to %v", c.got, c.least, c.most)
		}
	}
}

// TestMaxRequests: MaxRequests is the limit of what a link chooses, and changes no smaller limit.
func TestMaxRequests(t *testing.T) {
	for _, tc := range []struct {
		o       Options
		remote  bool
		want    int
		isFixed bool
	}{
		{Options{}, true, requestsRemote, false},
		{Options{MaxRequests: 8}, true, 8, false},
		{Options{MaxRequests: 1000}, true, requestsRemote, false},
		{Options{Requests: 4, MaxRequests: 8}, true, 4, true},
		{Options{Requests: 16, MaxRequests: 8}, true, 8, true},
		{Options{MaxRequests: 8}, false, 8, true},
	} {
		l := tc.o.newMember(tc.remote).link
		if l.Most() != tc.want || l.model.fixed != tc.isFixed {
			t.Errorf("%+v, remote %v: at most %d, fixed %v, want %d, %v", tc.o, tc.remote, l.Most(), l.model.fixed, tc.want, tc.isFixed)
		}
	}
}

// TestAdmit: a request waits for its turn, and its bytes count.
func TestAdmit(t *testing.T) {
	l := NewFixedLink(1)
	release, err := l.acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	sent := 0
	send := func() (int, error) { sent++; return 1000, nil }
	if err := l.Admit(ctx, send); !errors.Is(err, context.Canceled) || sent != 0 {
		t.Errorf("Admit = %v after %d requests, while another one is in flight", err, sent)
	}
	release(0, nil)
	if err := l.Admit(t.Context(), send); err != nil || sent != 1 || l.model.bytes != 1000 || l.model.inFlight != 0 {
		t.Errorf("Admit = %v after %d requests of %d bytes, %d in flight", err, sent, l.model.bytes, l.model.inFlight)
	}
	if err := l.Admit(t.Context(), func() (int, error) { return 0, store.ErrDenied }); !errors.Is(err, store.ErrDenied) {
		t.Errorf("Admit = %v, want the error of the request", err)
	}
}
