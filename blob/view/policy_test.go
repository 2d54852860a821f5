package view

import (
	"testing"
)

// TestNeighbourPolicy checks that the window depends on the link, the share of hits and the concurrent demand
// fetches.
func TestNeighbourPolicy(t *testing.T) {
	const kib = 1 << 10
	for _, c := range []struct {
		name         string
		issued, used int64 // KiB, besides the initial credit
		product      int64
		others       int
		least, most  int64 // KiB
	}{
		{"at first, small product", 0, 0, 0, 0, 384, 384},
		{"at first, large product", 0, 0, 100 << 20, 0, 768, 768},
		{"all read", 10_000, 10_000, 100 << 20, 0, 768, 768},
		{"half read", 8_000, 3_000, 100 << 20, 0, 300, 500},
		{"none read", 30_000, 0, 100 << 20, 0, 0, 0},
		{"some other demand fetches", 0, 0, 100 << 20, 4, 384, 384},
		{"many other demand fetches", 0, 0, 100 << 20, 63, 0, 0},
	} {
		a := newNeighbourPolicy()
		for range 10 {
			a.notePrefetch(c.issued * kib / 10)
			a.noteHit(c.used * kib / 10)
		}
		if got := a.windowSize(c.product, c.others) / kib; got < c.least || got > c.most {
			t.Errorf("%s: windowSize = %d KiB, want %d to %d", c.name, got, c.least, c.most)
		}
	}
	for _, c := range []struct{ lo, hi, window, size, from, to int64 }{
		{1000, 1100, 400, 10_000, 900, 1400}, {0, 100, 400, 10_000, 0, 400}, {9_900, 10_000, 400, 10_000, 9_800, 10_000},
	} {
		if from, to := splitWindow(c.lo, c.hi, c.window, c.size); from != c.from || to != c.to {
			t.Errorf("splitWindow(%d, %d, %d, %d) = %d, %d, want %d, %d", c.lo, c.hi, c.window, c.size, from, to, c.from, c.to)
		}
	}
}

// TestHitHistory checks that a profile is not useful after mostly misses, and useful again after enough hits.
func TestHitHistory(t *testing.T) {
	var h hitHistory
	step := func(hit bool, n int, want bool) {
		t.Helper()
		for range n {
			h.addOutcome(hit)
		}
		if got := h.isUseful(); got != want {
			t.Errorf("isUseful = %v after %d outcomes with hit = %v, want %v", got, n, hit, want)
		}
	}
	step(false, 0, true)
	step(false, minOutcomes-1, true)
	step(false, 1, false)
	step(true, 3, false)
	step(true, 10, true)
	step(false, 5, true)
	step(false, 20, false)
	step(true, historyLength, true)
}
