package view

import (
	"testing"
	"time"
)

// TestAround: neighbours come along as far as the link holds them and they prove useful.
func TestAround(t *testing.T) {
	const kib = 1 << 10
	for _, c := range []struct {
		name         string
		issued, used int64 // KiB, besides the good experience of the beginning
		product      int64
		others       int
		least, most  int64 // KiB
	}{
		{"at first, short link", 0, 0, 0, 0, 384, 384},
		{"at first, long link", 0, 0, 100 << 20, 0, 768, 768},
		{"all useful", 10_000, 10_000, 100 << 20, 0, 768, 768},
		{"half useful", 8_000, 3_000, 100 << 20, 0, 300, 500},
		{"useless", 30_000, 0, 100 << 20, 0, 0, 0},
		{"some wait too", 0, 0, 100 << 20, 4, 384, 384},
		{"many wait too", 0, 0, 100 << 20, 63, 0, 0},
	} {
		a := newAround()
		for range 10 {
			a.fetched(c.issued * kib / 10)
			a.wanted(c.used * kib / 10)
		}
		if got := a.window(c.product, c.others) / kib; got < c.least || got > c.most {
			t.Errorf("%s: window = %d KiB, want %d to %d", c.name, got, c.least, c.most)
		}
	}
	for _, c := range []struct{ lo, hi, window, size, from, to int64 }{
		{1000, 1100, 400, 10_000, 900, 1400}, {0, 100, 400, 10_000, 0, 400}, {9_900, 10_000, 400, 10_000, 9_800, 10_000},
	} {
		if from, to := spread(c.lo, c.hi, c.window, c.size); from != c.from || to != c.to {
			t.Errorf("spread(%d, %d, %d, %d) = %d, %d, want %d, %d", c.lo, c.hi, c.window, c.size, from, to, c.from, c.to)
		}
	}
}

// TestTrust: a profile is doubted when most of what happens speaks against it, and trusted again when it does not.
func TestTrust(t *testing.T) {
	var p trust
	step := func(good bool, n int, want bool) {
		t.Helper()
		for range n {
			p.note(good)
		}
		if got := p.deserved(); got != want {
			t.Errorf("after %d that are %v: deserved = %v, want %v", n, good, got, want)
		}
	}
	step(false, 0, true)
	step(false, trustLeast-1, true)
	step(false, 1, false)
	step(true, 3, false)
	step(true, 10, true)
	step(false, 5, true)
	step(false, 20, false)
	step(true, trustEvents, true)
}

// linkOf plays fetches of 64 KiB, so many at once as the budget allows, on a link that takes a trip for each and
// moves bytes at a rate. It returns the pace, and the rate that came of it.
func linkOf(t *testing.T, trip time.Duration, rate float64, fetches int) (*pace, float64) {
	t.Helper()
	const size = 64 << 10
	type flight struct {
		d    departure
		done time.Time
	}
	var p pace
	start := time.Unix(0, 0)
	now, free := start, start
	var flying []flight
	for n := 0; n < fetches; {
		for len(flying) == 0 || int64(len(flying)+1)*size <= p.budget(queueDelay) && n < fetches {
			free = latest(free, now.Add(trip)).Add(time.Duration(size / rate * float64(time.Second)))
			flying = append(flying, flight{p.depart(now), free})
			n++
		}
		now = flying[0].done
		p.arrive(flying[0].d, now, size)
		flying = flying[1:]
	}
	return &p, float64(fetches) * size / now.Sub(start).Seconds()
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
		waits := time.Duration(float64(p.budget(queueDelay))/c.rate*float64(time.Second)) - c.trip
		if most := 2*queueDelay + 10*time.Millisecond; waits > max(most, time.Duration(leastBudget/c.rate*float64(time.Second))) {
			t.Errorf("%v, %.2f MB/s: a read waits for %v behind others", c.trip, c.rate/1e6, waits)
		}
	}
	var idle pace
	if idle.budget(queueDelay) != firstBudget || idle.product() <= 0 {
		t.Errorf("before anything is measured: %d, %d", idle.budget(queueDelay), idle.product())
	}
}
