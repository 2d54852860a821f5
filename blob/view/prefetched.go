package view

import (
	"sync"
	"sync/atomic"

	"cairn/blob"
	"cairn/blob/view/fetch"
	"cairn/internal/bitset"
)

// prefetchTracker tracks the prefetched chunks, and the reason of each prefetch, until the chunks are read. The hits
// and misses adjust the prefetch of neighbours and of the profile. It implements fetch.Observer. Safe for concurrent
// use.
type prefetchTracker struct {
	index   *blob.Index
	profile profileFeed

	unread      *bitset.Set  // prefetched chunks that were not read yet
	unreadCount atomic.Int64 // size of unread
	neighbours  *bitset.Set  // chunks that were prefetched as neighbours and not read since
	profiled    *bitset.Set  // chunks that were prefetched for the profile and not read since

	bytes, used atomic.Int64 // bytes that were prefetched, and those of them that were read

	mu     sync.Mutex // guards the field below
	policy neighbourPolicy
}

func newPrefetchTracker(x *blob.Index, d Disk) *prefetchTracker {
	n := x.Len()
	return &prefetchTracker{
		index: x, profile: profileFeed{disk: d}, policy: newNeighbourPolicy(),
		unread: bitset.New(n), neighbours: bitset.New(n), profiled: bitset.New(n),
	}
}

// Prefetching implements fetch.Observer. It ignores Fill, which does not predict reads.
func (t *prefetchTracker) Prefetching(i int, p fetch.Priority) {
	if p == fetch.Fill {
		return
	}
	size := t.index.At(i).Size
	t.bytes.Add(size)
	if t.unread.Add(i) {
		t.unreadCount.Add(1)
	}
	switch p {
	case fetch.Neighbour:
		t.neighbours.Add(i)
		t.mu.Lock()
		t.policy.notePrefetch(size)
		t.mu.Unlock()
	case fetch.Profile:
		t.profiled.Add(i)
	}
}

// Missed implements fetch.Observer.
func (t *prefetchTracker) Missed(i int) { t.profile.noteMiss(i) }

// Lost implements fetch.Observer.
func (t *prefetchTracker) Lost(i int) {
	if t.unread.Remove(i) {
		t.unreadCount.Add(-1)
	}
}

// nextUnread returns the first prefetched chunk in [lo, hi) that was not read yet, or hi if there is none.
func (t *prefetchTracker) nextUnread(lo, hi int) int {
	if t.unreadCount.Load() == 0 {
		return hi
	}
	for lo < hi && !t.unread.Has(lo) {
		lo++
	}
	return lo
}

// noteRead records a read of chunk i. hit reports whether this is the first read of a prefetched chunk, and byProfile
// whether that chunk was prefetched for the profile.
func (t *prefetchTracker) noteRead(i int) (hit, byProfile bool) {
	if !t.unread.Remove(i) {
		return false, false
	}
	t.unreadCount.Add(-1)
	size := t.index.At(i).Size
	t.used.Add(size)
	if t.neighbours.Remove(i) {
		t.mu.Lock()
		t.policy.noteHit(size)
		t.mu.Unlock()
	}
	if byProfile = t.profiled.Remove(i); byProfile {
		t.profile.noteHit()
	}
	return true, byProfile
}

// neighbourWindow is neighbourPolicy.windowSize, for concurrent use.
func (t *prefetchTracker) neighbourWindow(product int64, others int) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.policy.windowSize(product, others)
}
