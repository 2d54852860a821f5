package view

import (
	"sync"
	"sync/atomic"

	"cairn/blob"
	"cairn/blob/view/fetch"
	"cairn/internal/bitset"
)

// early notes which chunks were fetched before a read asked for them, and why, until they are read. From that it judges
// what is worth a prefetch. It implements fetch.Observer. Safe for concurrent use.
type early struct {
	index   *blob.Index
	profile profileFeed

	unread *bitset.Set  // chunks that were prefetched, and not read yet
	count  atomic.Int64 // of unread
	beside *bitset.Set  // those of unread that were fetched as neighbours
	told   *bitset.Set  // and those that were in the profile

	bytes, used atomic.Int64 // that were prefetched, and of them read since

	mu     sync.Mutex // guards what follows
	around around
}

func newEarly(x *blob.Index, d Disk) *early {
	n := x.Len()
	return &early{
		index: x, profile: profileFeed{disk: d}, around: newAround(),
		unread: bitset.New(n), beside: bitset.New(n), told: bitset.New(n),
	}
}

// Prefetching implements fetch.Observer. Filling does not count: it is not about what is read next.
func (e *early) Prefetching(i int, p fetch.Priority) {
	if p == fetch.Fill {
		return
	}
	size := e.index.At(i).Size
	e.bytes.Add(size)
	if e.unread.Add(i) {
		e.count.Add(1)
	}
	switch p {
	case fetch.Neighbour:
		e.beside.Add(i)
		e.mu.Lock()
		e.around.fetched(size)
		e.mu.Unlock()
	case fetch.Profile:
		e.told.Add(i)
	}
}

// Missed implements fetch.Observer.
func (e *early) Missed(i int) { e.profile.noteMiss(i) }

// Lost implements fetch.Observer.
func (e *early) Lost(i int) {
	if e.unread.Remove(i) {
		e.count.Add(-1)
	}
}

// find returns the first chunk from lo on that was prefetched and not read yet, or hi if there is none before.
func (e *early) find(lo, hi int) int {
	if e.count.Load() == 0 {
		return hi
	}
	for lo < hi && !e.unread.Has(lo) {
		lo++
	}
	return lo
}

// use notes that a chunk was read. used reports whether it had been prefetched and not read yet, and byProfile whether
// the profile named it.
func (e *early) use(i int) (used, byProfile bool) {
	if !e.unread.Remove(i) {
		return false, false
	}
	e.count.Add(-1)
	size := e.index.At(i).Size
	e.used.Add(size)
	if e.beside.Remove(i) {
		e.mu.Lock()
		e.around.wanted(size)
		e.mu.Unlock()
	}
	if byProfile = e.told.Remove(i); byProfile {
		e.profile.noteHit()
	}
	return true, byProfile
}

// neighbours returns how many bytes beside a missed chunk are worth a prefetch, on a link that holds so many bytes,
// beside so many other demand fetches.
func (e *early) neighbours(product int64, others int) int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.around.window(product, others)
}
