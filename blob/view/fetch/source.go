package fetch

import (
	"cmp"
	"container/list"
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"cairn/blob"
	"cairn/store"
)

// Priority is the urgency of a fetch. A smaller one is more urgent.
type Priority int

const (
	Demand    Priority = iota // a read waits for the chunk
	ReadAhead                 // the chunk is ahead of sequential reads
	Neighbour                 // the chunk is near a missed one
	Profile                   // the chunk is in a boot profile
	Fill                      // fills the disk with the whole image
	priorities
)

const (
	diskSlots  = 16                     // limit of concurrent reads from disks and seeds
	idleAfter  = 100 * time.Millisecond // time after the last demand fetch until a source counts as idle
	slowFetch  = 2 * time.Second        // time after which a fetch that reads wait for is slow, and logged
	queueDelay = 50 * time.Millisecond  // limit of the delay of a demand fetch by prefetches without a feed
)

// errNotLocal means that no disk and no seed has a chunk, or it is damaged there.
var errNotLocal = errors.New("not on this machine")

// origin is where a chunk was read from.
type origin int

const (
	fromStore origin = iota
	fromDisk         // the client's disk, after a verification
	fromDonor        // another image's disk, or another offset on the client's own
	fromSeed
	fromDelta
	origins
)

// SourceOptions of a Source. The zero value of a field selects its default.
type SourceOptions struct {
	Fetches int    // in-flight limit; 0 is the Cache's default
	Link    Link   // model of the link to the store; nil assumes a link with room for a few chunks
	Deltas  Deltas // asked before the store; may be nil
	Packs   Packs  // says which chunks the store sends together; may be nil
}

// Packs says which chunks a store sends in one answer. Then they are requested in one call of its Get. It must be safe for
// concurrent use and return at once.
type Packs interface {
	// IsPacked reports whether the store may send the chunk with others.
	IsPacked(digest blob.Digest) bool
	// Near reports whether the store sends both chunks in one answer, with few bytes of others.
	Near(a, b blob.Digest) bool
}

// Deltas makes chunks from deltas and bytes of this machine. It requests less from a server than the chunk takes in the
// store. It must be safe for concurrent use.
type Deltas interface {
	// MayMake reports whether Make may succeed. It does not block on I/O.
	MayMake(digest blob.Digest, size int64) bool
	// Make fills dst with a chunk and verifies it. It reports whether it did.
	Make(ctx context.Context, digest blob.Digest, dst []byte) bool
}

// Source fetches chunks from one store and its deltas, or from the disks and seeds. It queues them, and decides which fetch is next and
// whether it may start. The Cache guards the fields with its lock.
type Source struct {
	cache         *Cache
	from          store.Getter // nil for the disks and seeds
	deltas        Deltas       // may be nil
	packs         Packs        // may be nil
	link          Link
	slots         int // in-flight limit
	prefetchSlots int // in-flight limit of prefetches

	starting []*Entry                 // packed chunks whose fetch has begun, to be requested in one call
	queues   [priorities]list.List    // of *Entry
	places   map[*Entry]*list.Element // elements of queues
	feeds    []*feed                  // sorted by priority, the most urgent first
	inFlight int                      // fetches in flight
	bytes    int64                    // of the fetches in flight
	demands  atomic.Int32             // demand fetches in flight; written with the Cache's lock held
	idleAt   time.Time                // when the source counts as idle, if no demand fetch is in flight

	outage
}

func newSource(c *Cache, from store.Getter, o SourceOptions) *Source {
	s := &Source{cache: c, from: from, deltas: o.Deltas, packs: o.Packs, slots: o.Fetches, prefetchSlots: o.Fetches - o.Fetches/4, places: map[*Entry]*list.Element{}}
	s.link = cmp.Or[Link](o.Link, assumedLink{})
	s.over = make(chan struct{})
	return s
}

// enqueue appends an entry to the queue of its priority.
func (s *Source) enqueue(e *Entry) {
	e.at = s
	s.places[e] = s.queues[e.priority].PushBack(e)
}

// dequeue removes an entry from its queue.
func (s *Source) dequeue(e *Entry) {
	s.queues[e.priority].Remove(s.places[e])
	delete(s.places, e)
}

// promoteToDemand makes a queued entry a demand fetch.
func (s *Source) promoteToDemand(e *Entry) {
	s.dequeue(e)
	e.priority = Demand
	s.enqueue(e)
}

func (s *Source) isQueued(e *Entry) bool { return s != nil && s.places[e] != nil }

// nextEntry returns the most urgent queued entry, or nil.
func (s *Source) nextEntry() *Entry {
	for p := range s.queues {
		if front := s.queues[p].Front(); front != nil {
			return front.Value.(*Entry)
		}
	}
	return nil
}

// mayFetch reports whether the fetch of a queued entry may start now. If not, later is the time to try again, or zero
// to try again after the next fetch has ended.
func (s *Source) mayFetch(e *Entry, now time.Time) (ok bool, later time.Time) {
	if e.priority == Demand {
		return s.inFlight < s.slots, time.Time{}
	}
	return s.mayPrefetch(e.size, queueDelay, now)
}

// mayPrefetch reports, like mayFetch, whether a prefetch of n bytes may start without delaying a demand fetch by more
// than delay. While the store is unavailable, a single prefetch after each backoff is the probe.
func (s *Source) mayPrefetch(n int64, delay time.Duration, now time.Time) (ok bool, later time.Time) {
	switch {
	case s.from == nil:
		return s.inFlight < s.prefetchSlots, time.Time{}
	case now.Before(s.until):
		return false, s.until
	case s.failures > 0:
		return s.inFlight == 0, time.Time{}
	}
	return s.inFlight == 0 || s.inFlight < s.prefetchSlots && s.bytes+n <= s.link.Budget(delay), time.Time{}
}

// maxRun limits the bytes of packed chunks that a feed requests at once.
const maxRun = 2 << 20

// runSize returns how many bytes of packed chunks a feed requests at once: half of what may be in flight, so that one
// request follows the other.
func (s *Source) runSize(delay time.Duration) int64 { return min(s.link.Budget(delay)/2, maxRun) }

// mayFeed is mayPrefetch for the next n bytes of a feed, within the feed's budget.
func (s *Source) mayFeed(f *feed, n int64, now time.Time) (ok bool, later time.Time) {
	b := f.Budget()
	switch {
	case b.Pause > 0:
		f.pauseFor(now, b.Pause)
		return false, f.next
	case b.Idle && s.demands.Load() > 0, b.Alone && s.inFlight > 0:
		return false, time.Time{}
	case b.Idle && now.Before(s.idleAt):
		return false, s.idleAt
	}
	return s.mayPrefetch(n, b.Delay, now)
}

// beginFetch moves an entry from its queue to the fetches in flight.
func (s *Source) beginFetch(e *Entry) {
	s.dequeue(e)
	s.inFlight++
	s.bytes += e.size
	if e.priority == Demand {
		s.demands.Add(1)
	}
	e.early = e.priority != Demand
}

// isPacked reports whether the store may send an entry's chunk with others. A chunk that a delta may make is fetched by
// itself.
func (s *Source) isPacked(e *Entry) bool {
	d := e.key.digest
	return s.packs != nil && s.packs.IsPacked(d) && (s.deltas == nil || !s.deltas.MayMake(d, e.size))
}

// endFetch records the end of a fetch.
func (s *Source) endFetch(size int64, demanded bool, now time.Time) {
	s.inFlight--
	s.bytes -= size
	if demanded {
		s.demands.Add(-1)
		s.idleAt = now.Add(idleAfter)
	}
}

func (s *Source) addFeed(f *feed) {
	s.feeds = append(s.feeds, f)
	slices.SortStableFunc(s.feeds, func(a, b *feed) int { return int(a.priority - b.priority) })
}

func (s *Source) removeFeeds(is func(*feed) bool) { s.feeds = slices.DeleteFunc(s.feeds, is) }

// fetchChunk fills data with an entry's chunk, from a delta if there is one. While the store is unavailable and reads wait for the chunk, it
// retries. It must be called without the Cache's lock.
func (s *Source) fetchChunk(ctx context.Context, e *Entry, data []byte) (origin, error) {
	if s.from == nil {
		return s.readLocally(e, data)
	}
	if s.deltas != nil && s.deltas.Make(ctx, e.key.digest, data) {
		return fromDelta, nil
	}
	slow := time.AfterFunc(slowFetch, func() { s.cache.noteSlow(e) })
	defer slow.Stop()
	began := time.Now()
	for n := 1; ; n++ {
		err := store.GetOne(ctx, s.from, e.key.digest, data)
		if err == nil || !errors.Is(err, store.ErrUnavailable) {
			return fromStore, err
		}
		if e.lastErr.Store(&err); e.retrying.Load() == 0 {
			return fromStore, err
		}
		wait := backoff.Wait(n)
		over := s.cache.noteRetry(e, err, time.Since(began))
		if err := sleepUntil(ctx, wait, over); err != nil {
			return fromStore, err
		}
	}
}

// readLocally reads a chunk from its position on the client's disk, from a donor, or from a seed.
func (s *Source) readLocally(e *Entry, data []byte) (origin, error) {
	if (position{e.client, e.chunk}).isClaimed() && e.client.disk.Prove(e.chunk, data) {
		return fromDisk, nil
	}
	if d := s.cache.donors; d != nil && d.Copy(e.key.algorithm, e.key.digest, data) {
		return fromDonor, nil
	}
	if d := s.cache.seeds; d != nil && d.Copy(e.key.algorithm, e.key.digest, data) {
		return fromSeed, nil
	}
	return fromDisk, errNotLocal
}

// sleepUntil blocks for wait, or until a channel is closed or ctx ends. It returns ctx.Err.
func sleepUntil(ctx context.Context, wait time.Duration, until <-chan struct{}) error {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
	case <-until:
	case <-ctx.Done():
	}
	return ctx.Err()
}
