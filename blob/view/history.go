package view

const (
	historyLength = 32 // outcomes that count, the latest ones
	minOutcomes   = 6  // outcomes that isUseful needs to reject a profile
)

// hitHistory judges a profile by the latest outcomes. The first read of a chunk that was prefetched for the profile
// is a hit. A read that misses a chunk is a miss, if the profile lacks the chunk or is far from prefetching it.
// hitHistory is pure. The zero value is ready.
type hitHistory struct {
	outcomes uint32 // one bit each, the latest in the lowest bit; 1 is a hit
	count    int    // number of outcomes, at most historyLength
}

func (h *hitHistory) addOutcome(hit bool) {
	h.outcomes <<= 1
	if hit {
		h.outcomes |= 1
	}
	h.count = min(h.count+1, historyLength)
}

// isConclusive reports whether there are enough outcomes to judge the profile.
func (h *hitHistory) isConclusive() bool { return h.count >= minOutcomes }

// isUseful reports whether at least half of the latest outcomes are hits, or there are not enough of them.
func (h *hitHistory) isUseful() bool {
	if !h.isConclusive() {
		return true
	}
	hits := 0
	for i := range h.count {
		hits += int(h.outcomes >> i & 1)
	}
	return 2*hits >= h.count
}
