package view

import (
	"slices"
	"sync"
	"time"

	"cairn/blob/view/fetch"
)

const (
	// untriedDelay is for how long the link may be busy with a profile that has not proved itself.
	untriedDelay = 10 * time.Millisecond
	// profileDelay is for how long it may be busy with one that has.
	profileDelay = 50 * time.Millisecond
	// missesFrom is how many chunks a read may be ahead of the profile's prefetches and not count as a miss: it was early.
	missesFrom = 256
)

// profileFeed is the list of chunks that Follow was given, as a fetch.Feed, and the trust in it. The zero value is an empty
// one. Safe for concurrent use.
type profileFeed struct {
	disk Disk // may be nil

	mu     sync.Mutex // guards what follows
	list   []int
	places map[int]int // chunk to its place in list
	next   int         // place of the next chunk to prefetch
	trust  trust
}

// Follow prefetches chunks in this order, as far as there is room for them: the plan of a profile. It does not wait.
// Chunks that are on disk already are not fetched; they are evicted last.
func (v *Image) Follow(chunks []int) {
	if v.disk != nil {
		for _, i := range chunks {
			v.disk.Pin(i)
		}
	}
	p := &v.early.profile
	p.set(chunks)
	v.chunks.StartFeed(p, fetch.Profile, 0)
}

func (p *profileFeed) set(chunks []int) {
	places := make(map[int]int, len(chunks))
	for n, i := range chunks {
		places[i] = n
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.list, p.places, p.next = slices.Clone(chunks), places, 0
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
	return chunk, wants(p.disk, chunk), true
}

// wants reports whether a disk, if there is one, lacks a chunk and has not begun to write it.
func wants(d Disk, chunk int) bool { return d == nil || d.Wants(chunk) && !d.Queued(chunk) }

// Rewind implements fetch.Feed.
func (p *profileFeed) Rewind() bool { return false }

// Budget implements fetch.Feed: a profile earns its share of the link.
func (p *profileFeed) Budget() fetch.Budget {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !p.trust.deserved():
		return fetch.Budget{Delay: untriedDelay, Idle: true, Alone: true}
	case !p.trust.tried():
		return fetch.Budget{Delay: untriedDelay}
	}
	return fetch.Budget{Delay: profileDelay}
}

// noteHit notes that a chunk was read that the profile had prefetched.
func (p *profileFeed) noteHit() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trust.note(true)
}

// noteMiss notes that a read had to wait for a chunk. That speaks against the profile, unless it has the chunk and only
// was not that far yet.
func (p *profileFeed) noteMiss(chunk int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.places == nil {
		return
	}
	place, known := p.places[chunk]
	if !known || place-p.next > missesFrom {
		p.trust.note(false)
	}
}
