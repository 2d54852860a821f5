package fetch

import (
	"testing"
	"time"
)

// linkOf plays fetches of 64 KiB, so many at once as the budget allows, on a link that takes a trip for each and
// moves bytes at a rate. It returns the pace, and the rate that was reached.
func linkOf(t *testing.T, trip time.Duration, rate float64, fetches int) (*pace, float64) {
	t.Helper()
	const size = 64 << 10
	type flight struct {
		d    departure
		done time.Time
	}
	p := &pace{}
	start := time.Unix(0, 0)
	now, free := start, start
	var flying []flight
	for n := 0; n < fetches; {
		for len(flying) == 0 || int64(len(flying)+1)*size <= p.Budget(queueDelay) && n < fetches {
			if arrives := now.Add(trip); free.Before(arrives) {
				free = arrives
			}
			free = free.Add(time.Duration(size / rate * float64(time.Second)))
			flying = append(flying, flight{p.depart(now), free})
			n++
		}
		now = flying[0].done
		p.arrive(flying[0].d, now, size)
		flying = flying[1:]
	}
	return p, float64(fetches) * size / now.Sub(start).Seconds()
}

// TestPace: on links of all kinds the budget finds what fills the link, and does not delay a read by much more
// than it may.
func TestPace(t *testing.T) {
	for _, c := range []struct {
		trip time.Duration
		rate float64 // bytes a second
	}{
		{20 * time.Millisecond, 12.5e6}, {5 * time.Millisecond, 125e6}, {80 * time.Millisecond, 12.5e6},
		{300 * time.Millisecond, 12.5e6}, {time.Millisecond, 125e6}, {40 * time.Millisecond, 1.25e6},
	} {
		p, got := linkOf(t, c.trip, c.rate, 2000)
		if got < 0.8*c.rate {
			t.Errorf("%v, %.2f MB/s: only %.2f MB/s are used", c.trip, c.rate/1e6, got/1e6)
		}
		waits := time.Duration(float64(p.Budget(queueDelay))/c.rate*float64(time.Second)) - c.trip
		if most := 2*queueDelay + 10*time.Millisecond; waits > max(most, time.Duration(leastBudget/c.rate*float64(time.Second))) {
			t.Errorf("%v, %.2f MB/s: a read waits for %v behind others", c.trip, c.rate/1e6, waits)
		}
	}
	var idle pace
	if idle.Budget(queueDelay) != firstBudget || idle.Product() <= 0 {
		t.Errorf("before anything is measured: %d, %d", idle.Budget(queueDelay), idle.Product())
	}
}

// fixedLink is a Link that never has room.
type fixedLink int64

func (l fixedLink) Product() int64             { return int64(l) }
func (l fixedLink) Budget(time.Duration) int64 { return int64(l) }

// TestGivenLink: a source asks the link that it was given.
func TestGivenLink(t *testing.T) {
	image := random(1, 40)
	from := holding(t, image)
	from.latency = time.Hour
	cache := New(t.Context(), Options{})
	defer cache.Close()
	r := newReader(t, cache.NewSource(from, SourceOptions{Link: fixedLink(3 * chunkSize)}), image, ClientOptions{})
	r.Prefetch(0, 40, ReadAhead)
	cache.mu.Lock()
	defer cache.mu.Unlock()
	if r.source.flying != 3 || r.Product() != 3*chunkSize {
		t.Errorf("%d prefetches in flight, want 3", r.source.flying)
	}
}
