package fetch

import (
	"cmp"
	"container/list"
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"cairn/store"
)

// Priority is how urgent a fetch is. Of two the smaller one is first.
type Priority int

const (
	Demand    Priority = iota // a read waits for the chunk
	ReadAhead                 // a stream of reads comes to it
	Neighbour                 // it lies near a chunk that was missed
	Profile                   // a profile has it
	Fill                      // all chunks are wanted
	priorities
)

const (
	diskSlots  = 16                     // chunks that are read and proven from the disk at once
	quiet      = 100 * time.Millisecond // after the last demand fetch, until a source counts as idle
	slowFetch  = 2 * time.Second        // after which a fetch that reads wait for is logged
	queueDelay = 50 * time.Millisecond  // for which prefetches may delay a demand fetch
)

// errNotOnDisk means that a chunk is not on disk, or damaged there.
var errNotOnDisk = errors.New("not on disk")

// origin is where a chunk came from.
type origin int

const (
	fromStore origin = iota
	fromDisk         // the client's disk, proven anew
	fromDonor        // another image's disk, or another place on the client's own
	origins
)

// SourceOptions of a Source. The zero value is good.
type SourceOptions struct {
	Fetches int  // in-flight limit; 0 is the Cache's default
	Link    Link // to the store; nil assumes one with room for a few chunks
}

// Source is a store with the queue of the chunks that are to be fetched from it, or the disks. It decides which fetch is
// next, and whether it may begin now; the Cache that made it guards it and does the fetching.
type Source struct {
	cache *Cache
	from  store.Getter // nil: the disks
	link  Link
	slots int
	spare int // of the slots, those that prefetches may take

	queues  [priorities]list.List // of *Entry
	places  map[*Entry]*list.Element
	feeds   []*feed // the most urgent first
	flying  int
	bytes   int64        // in flight
	demands atomic.Int32 // of those in flight; the Cache alone writes it
	quietAt time.Time    // when the source counts as idle, if no demand fetch is in flight

	outage
}

func newSource(c *Cache, from store.Getter, o SourceOptions) *Source {
	s := &Source{cache: c, from: from, slots: o.Fetches, spare: o.Fetches - o.Fetches/4, places: map[*Entry]*list.Element{}}
	s.link = cmp.Or[Link](o.Link, assumedLink{})
	s.over = make(chan struct{})
	return s
}

// push queues an entry.
func (s *Source) push(e *Entry) {
	e.at = s
	s.places[e] = s.queues[e.priority].PushBack(e)
}

// remove takes an entry out of its queue.
func (s *Source) remove(e *Entry) {
	s.queues[e.priority].Remove(s.places[e])
	delete(s.places, e)
}

// promote moves a queued entry to the demand fetches.
func (s *Source) promote(e *Entry) {
	s.remove(e)
	e.priority = Demand
	s.push(e)
}

func (s *Source) queued(e *Entry) bool { return s != nil && s.places[e] != nil }

// length returns how many entries of a priority are queued.
func (s *Source) length(p Priority) int { return s.queues[p].Len() }

// front returns the most urgent queued entry, or nil.
func (s *Source) front() *Entry {
	for p := range s.queues {
		if front := s.queues[p].Front(); front != nil {
			return front.Value.(*Entry)
		}
	}
	return nil
}

// mayFetch reports whether a queued entry may be fetched now. If it may not, later is when to ask again, or zero: after
// the next fetch has ended.
func (s *Source) mayFetch(e *Entry, now time.Time) (ok bool, later time.Time) {
	if e.priority == Demand {
		return s.flying < s.slots, time.Time{}
	}
	return s.mayPrefetch(e.size, queueDelay, now)
}

// mayPrefetch reports whether there is room for a prefetch of n bytes, where prefetches may delay a demand fetch by so
// much. Of a store that is unavailable one prefetch finds out whether it is back.
func (s *Source) mayPrefetch(n int64, delay time.Duration, now time.Time) (ok bool, later time.Time) {
	switch {
	case s.from == nil:
		return s.flying < s.spare, time.Time{}
	case now.Before(s.until):
		return false, s.until
	case s.failures > 0:
		return s.flying == 0, time.Time{}
	}
	return s.flying == 0 || s.flying < s.spare && s.bytes+n <= s.link.Budget(delay), time.Time{}
}

// mayFeed is mayPrefetch for a feed's next chunk, within the feed's budget.
func (s *Source) mayFeed(f *feed, now time.Time) (ok bool, later time.Time) {
	b := f.Budget()
	switch {
	case b.Pause > 0:
		f.pause(now, b.Pause)
		return false, f.next
	case b.Idle && s.demands.Load() > 0, b.Alone && s.flying > 0:
		return false, time.Time{}
	case b.Idle && now.Before(s.quietAt):
		return false, s.quietAt
	}
	return s.mayPrefetch(f.client.maxSize, b.Delay, now)
}

// depart takes an entry out of its queue, as its fetch begins.
func (s *Source) depart(e *Entry) {
	s.remove(e)
	s.flying++
	s.bytes += e.size
	if e.priority == Demand {
		s.demands.Add(1)
	}
	e.early = e.priority != Demand
}

// arrive notes that a fetch has ended.
func (s *Source) arrive(size int64, demanded bool, now time.Time) {
	s.flying--
	s.bytes -= size
	if demanded {
		s.demands.Add(-1)
		s.quietAt = now.Add(quiet)
	}
}

func (s *Source) addFeed(f *feed) {
	s.feeds = append(s.feeds, f)
	slices.SortStableFunc(s.feeds, func(a, b *feed) int { return int(a.priority - b.priority) })
}

func (s *Source) removeFeeds(is func(*feed) bool) { s.feeds = slices.DeleteFunc(s.feeds, is) }

// get fills data with an entry's chunk. It repeats a fetch from a store that is unavailable for as long as reads wait
// for it. It runs without the Cache's lock.
func (s *Source) get(ctx context.Context, e *Entry, data []byte) (origin, error) {
	if s.from == nil {
		return s.read(e, data)
	}
	slow := time.AfterFunc(slowFetch, func() { s.cache.noteSlow(e) })
	defer slow.Stop()
	began := time.Now()
	for n := 1; ; n++ {
		err := store.GetOne(ctx, s.from, e.key.digest, data)
		if err == nil || !errors.Is(err, store.ErrUnavailable) {
			return fromStore, err
		}
		if e.noteFailure(err); e.holding.Load() == 0 {
			return fromStore, err
		}
		wait := backoff.Wait(n)
		answers := s.cache.hold(e, err, time.Since(began))
		if err := sleep(ctx, wait, answers); err != nil {
			return fromStore, err
		}
	}
}

// read gets a chunk from disk: from its own place, or from a donor.
func (s *Source) read(e *Entry, data []byte) (origin, error) {
	if (home{e.client, e.chunk}).prove(data) {
		return fromDisk, nil
	}
	if d := s.cache.donors; d != nil && d.Copy(e.key.algorithm, e.key.digest, data) {
		return fromDonor, nil
	}
	return fromDisk, errNotOnDisk
}

// sleep waits, but no longer than until a channel is closed or ctx ends; then it returns the error of ctx.
func sleep(ctx context.Context, wait time.Duration, until <-chan struct{}) error {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
	case <-until:
	case <-ctx.Done():
	}
	return ctx.Err()
}
