package view

const (
	trustEvents = 32 // of late, that count
	trustLeast  = 6  // that are needed for a judgement
)

// trust judges a profile by what happens: chunks that it brought and that were then read speak for it, reads that
// had to wait for something else against it. Pure. The zero value trusts.
type trust struct {
	events uint32 // of late, the last one in the lowest bit; a good one is 1
	seen   int
}

func (t *trust) note(good bool) {
	t.events <<= 1
	if good {
		t.events |= 1
	}
	t.seen = min(t.seen+1, trustEvents)
}

// tried reports whether there were enough events for a judgement.
func (t *trust) tried() bool { return t.seen >= trustLeast }

// deserved is false when most of the latest events speak against the profile.
func (t *trust) deserved() bool {
	if !t.tried() {
		return true
	}
	good := 0
	for i := range t.seen {
		good += int(t.events >> i & 1)
	}
	return 2*good >= t.seen
}
