package view

import (
	"testing"
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
