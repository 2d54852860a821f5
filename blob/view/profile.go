package view

import (
	"slices"
	"sync"
	"time"

	"cairn/blob/view/fetch"
)

const (
	// unprovenDelay limits the delay of a demand fetch by a profile that is not proven useful yet.
	unprovenDelay = 10 * time.Millisecond
	// provenDelay is the same for a profile that is proven useful.
	provenDelay = 50 * time.Millisecond
	// missTolerance is a number of chunks. A miss that is at most this far past the profile's fetch position does not
	// count.
	missTolerance = 256
)

// profileFeed is the fetch.Feed of the chunks that Follow was given, with the history of their hits and misses. The
// zero value is empty. Safe for concurrent use.
type profileFeed struct {
	disk Disk // may be nil

	mu      sync.Mutex // guards the fields below
	list    []int
	places  map[int]int // from a chunk to its index in list
	next    int         // index in list of the next chunk to prefetch
	history hitHistory
}

// Follow prefetches chunks in the given order, which is the plan of a profile, as far as there is room for them. It
// returns at once. Chunks that are on disk already are not fetched. The disk evicts the chunks last.
func (v *Image) Follow(chunks []int) {
	if v.disk != nil {
		for _, i := range chunks {
			v.disk.Pin(i)
		}
	}
	places := make(map[int]int, len(chunks))
	for n, i := range chunks {
		places[i] = n
	}
	p := &v.tracker.profile
	p.mu.Lock()
	p.list, p.places, p.next = slices.Clone(chunks), places, 0
	p.mu.Unlock() // StartFeed calls Next
	v.chunks.StartFeed(p, fetch.Profile, 0)
}

// Next implements fetch.Feed.
func (p *profileFeed) Next() (chunk int, wanted, more bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next == len(p.list) {
		return 0, false, false
	}
	chunk = p.list[p.next]
	p.next++
	return chunk, isWanted(p.disk, chunk), true
}

// isWanted reports whether a feed should fetch a chunk: there is no disk, or the disk lacks the chunk, would keep it,
// and has not queued it.
func isWanted(d Disk, chunk int) bool { return d == nil || d.Wants(chunk) && !d.Queued(chunk) }

// Rewind implements fetch.Feed.
func (p *profileFeed) Rewind() bool { return false }

// Budget implements fetch.Feed. The budget grows with the hits of the profile.
func (p *profileFeed) Budget() fetch.Budget {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !p.history.isUseful():
		return fetch.Budget{Delay: unprovenDelay, Idle: true, Alone: true}
	case !p.history.isConclusive():
		return fetch.Budget{Delay: unprovenDelay}
	}
	return fetch.Budget{Delay: provenDelay}
}

// noteHit records the first read of a chunk that was prefetched for the profile.
func (p *profileFeed) noteHit() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.history.addOutcome(true)
}

// noteMiss records that a read missed a chunk. It does not count if the profile has the chunk and is about to fetch
// it, or has named it already.
func (p *profileFeed) noteMiss(chunk int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.places == nil {
		return
	}
	place, known := p.places[chunk]
	if !known || place-p.next > missTolerance {
		p.history.addOutcome(false)
	}
}
