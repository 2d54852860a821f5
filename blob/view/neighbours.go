package view

const (
	minWindow       = 64 << 10  // bytes; a smaller window would hold less than one chunk
	maxWindow       = 768 << 10 // limit of the window in bytes, on any link
	minWindowLimit  = 384 << 10 // limit of the window in bytes, on a link with a small product
	neighbourCredit = 2 << 20   // bytes of neighbours that count as read at the start
	halvingMisses   = 4         // concurrent demand fetches that halve the window
)

// neighbourPolicy sizes the prefetch of a missed chunk's neighbours. The window is as large as the link's
// bandwidth-delay product, since such a prefetch takes no extra time. It shrinks with the share of neighbours that
// are never read, and with concurrent misses, which fill the link themselves. neighbourPolicy is pure: it knows only
// the recorded events.
type neighbourPolicy struct {
	issued, used int64 // bytes of neighbours that were prefetched, and read; both decay
}

func newNeighbourPolicy() neighbourPolicy {
	return neighbourPolicy{issued: neighbourCredit, used: neighbourCredit}
}

// windowSize returns how many bytes of neighbours to prefetch. product is the link's bandwidth-delay product in
// bytes, and others the number of other demand fetches in flight.
func (p *neighbourPolicy) windowSize(product int64, others int) int64 {
	most := min(max(product, minWindowLimit), maxWindow) * halvingMisses / int64(halvingMisses+max(others, 0))
	share := float64(p.used) / float64(p.issued)
	switch n := int64(float64(most) * share); {
	case share < 0.1 || n < minWindow:
		return 0
	default:
		return n
	}
}

// notePrefetch records a prefetch of n bytes of neighbours. It halves both counts when they are large, so old events
// lose weight.
func (p *neighbourPolicy) notePrefetch(n int64) {
	p.issued += n
	if p.issued > 4*neighbourCredit {
		p.issued /= 2
		p.used /= 2
	}
}

// noteHit records the first read of n bytes of prefetched neighbours.
func (p *neighbourPolicy) noteHit(n int64) { p.used = min(p.used+n, p.issued) }

// splitWindow places a window around the missed bytes [lo, hi) of an image of the given size: a quarter before them,
// and the rest after them, where reads are likely to continue.
func splitWindow(lo, hi, window, size int64) (from, to int64) {
	before := window / 4
	return max(lo-before, 0), min(hi+window-before, size)
}
