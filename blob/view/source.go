package view

import (
	"container/list"
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"cairn/store"
)

// rank is how urgent a chunk is.
type rank int

const (
	demand   rank = iota // somebody waits for it
	ahead                // a stream of reads comes to it
	beside               // it is near one that was missed
	foretold             // a profile has it
	filling              // all chunks are wanted
	ranks
)

const (
	nearSlots    = 16 // chunks that are read and proven from the disk at once
	quiet        = 100 * time.Millisecond
	firstAgain   = 100 * time.Millisecond // wait before a store that is away is asked again
	longestAgain = 5 * time.Second
	slowFetch    = 2 * time.Second // after which a fetch that somebody waits for is told of
	tellAgain    = 30 * time.Second
)

// errElsewhere says that a chunk is not on disk, or not right there.
var errElsewhere = errors.New("not on disk")

// tier is where a chunk came from.
type tier int

const (
	fromStore tier = iota
	fromDisk       // of the image's own file, proven anew
	fromOther      // another image's file, or another place in its own
)

// Source is a store, with the queue of what is to be fetched from it. All of it is guarded by its cache's mutex.
type Source struct {
	cache *Cache
	from  store.Getter // nil: the disk
	slots int
	spare int // of the slots, those that chunks nobody waits for may take

	queues  [ranks]list.List
	feeds   []*feed
	flying  int
	bytes   int64 // in flight
	pace    pace
	demands int       // of those in flight
	quietAt time.Time // when it is quiet enough for what can wait, if no demand is in flight
	awayTil time.Time // until then nothing is asked that nobody waits for
	awayN   int       // failures in a row
	back    chan struct{}
	told    time.Time // when the log was told last that reads wait; zero when the store has answered since
	timer   *time.Timer
	timerAt time.Time
}

func (c *Cache) newSource(from store.Getter, slots int) *Source {
	s := &Source{cache: c, from: from, slots: slots, spare: slots - slots/4, back: make(chan struct{})}
	c.all = append(c.all, s)
	return s
}

// push queues an entry. The caller holds the cache's mutex, and pumps.
func (s *Source) push(e *entry) {
	e.at = s
	e.queued = s.queues[e.rank].PushBack(e)
}

// promote moves an entry to those that somebody waits for.
func (s *Source) promote(e *entry) {
	s.queues[e.rank].Remove(e.queued)
	e.rank = demand
	s.push(e)
}

// clear fails all that is queued, as the cache is closed.
func (s *Source) clear() {
	for r := range s.queues {
		for s.queues[r].Len() > 0 {
			e := s.queues[r].Remove(s.queues[r].Front()).(*entry)
			e.queued = nil
			s.cache.fail(e, s.cache.ctx.Err())
		}
	}
	if s.timer != nil {
		s.timer.Stop()
	}
}

// pump begins the fetches that may begin: the most urgent first, and what nobody waits for as far as the link has
// room for it.
func (s *Source) pump() {
	for e := s.next(); e != nil; e = s.next() {
		s.launch(e)
	}
	s.pumpFeeds()
}

func (s *Source) launch(e *entry) {
	s.queues[e.rank].Remove(e.queued)
	e.queued = nil
	s.flying++
	s.bytes += e.key.size
	if e.rank == demand {
		s.demands++
	}
	e.early = e.rank != demand
	e.began = s.pace.depart(time.Now())
	s.cache.begin(e)
}

// next is the entry to fetch now, or nil.
func (s *Source) next() *entry {
	for r := range s.queues {
		front := s.queues[r].Front()
		if front == nil {
			continue
		}
		if e := front.Value.(*entry); s.may(e) {
			return e
		}
		return nil
	}
	return nil
}

// may says whether an entry may be fetched now.
func (s *Source) may(e *entry) bool {
	if !s.cache.fits(e) {
		return false
	}
	return e.rank == demand && s.flying < s.slots || e.rank != demand && s.mayAhead(e.key.size, queueDelay)
}

// mayAhead says whether the link has room for bytes that nobody waits for, of which it may be busy for so long.
func (s *Source) mayAhead(n int64, delay time.Duration) bool {
	if s.from == nil {
		return s.flying < s.spare
	}
	if now := time.Now(); now.Before(s.awayTil) {
		s.wakeAt(s.awayTil)
		return false
	}
	if s.awayN > 0 {
		return s.flying == 0 // one will tell whether it is back
	}
	return s.flying < s.spare && (s.flying == 0 || s.bytes+n <= s.pace.budget(delay))
}

// wakeAt pumps at a time, if not before.
func (s *Source) wakeAt(at time.Time) {
	if s.timer != nil && !s.timerAt.Before(time.Now()) && !at.Before(s.timerAt) {
		return
	}
	if s.timer != nil {
		s.timer.Stop()
	}
	s.timerAt = at
	s.timer = time.AfterFunc(time.Until(at), func() {
		s.cache.mu.Lock()
		defer s.cache.mu.Unlock()
		s.timerAt = time.Time{}
		s.cache.pump()
	})
}

// answered takes note that a fetch succeeded.
func (s *Source) answered(e *entry) {
	s.pace.arrive(e.began, time.Now(), e.key.size)
	if s.awayN == 0 {
		return
	}
	if !s.told.IsZero() {
		s.cache.limits.Log.Info("the store answers again")
	}
	s.awayN, s.awayTil, s.told = 0, time.Time{}, time.Time{}
	close(s.back)
	s.back = make(chan struct{})
}

// failed takes note that a fetch failed. A store that is away is left alone for a while by all that can wait.
func (s *Source) failed(err error) {
	if errors.Is(err, store.ErrUnavailable) {
		s.awayN++
		s.awayTil = time.Now().Add(again(s.awayN))
	}
}

// landed takes an entry of that size off the link.
func (s *Source) landed(size int64, waited bool) {
	s.flying--
	s.bytes -= size
	if waited {
		s.demands--
		s.quietAt = time.Now().Add(quiet)
	}
}

// again is how long to wait after the n-th failure in a row, less a random part: what many do at once.
func again(n int) time.Duration {
	wait := firstAgain
	for ; n > 1 && wait < longestAgain; n-- {
		wait *= 2
	}
	wait = min(wait, longestAgain)
	return wait - rand.N(wait/2)
}

// get fills data with an entry's chunk.
func (s *Source) get(e *entry, data []byte) (tier, error) {
	if s.from == nil {
		return s.read(e, data)
	}
	slow := time.AfterFunc(slowFetch, func() { s.slow(e) })
	defer slow.Stop()
	began := time.Now()
	for n := 1; ; n++ {
		err := store.GetOne(s.cache.ctx, s.from, e.key.digest, data)
		if err == nil || !errors.Is(err, store.ErrUnavailable) || !s.held(e, err) {
			return fromStore, err
		}
		wait := again(n)
		back := s.hold(e, err, time.Since(began))
		if !pause(s.cache.ctx, wait, back) {
			return fromStore, s.cache.ctx.Err()
		}
	}
}

// read gets a chunk from disk: from its own place, or from another that has it.
func (s *Source) read(e *entry, data []byte) (tier, error) {
	h := e.first
	if d := h.image.disk; d != nil && d.Claims(h.chunk) && d.Prove(h.chunk, data) {
		return fromDisk, nil
	}
	if d := s.cache.limits.Disk; d != nil && d.Copy(e.key.algorithm, e.key.digest, data) {
		return fromOther, nil
	}
	return 0, errElsewhere
}

// held says whether somebody waits for the entry who would wait for a store that is away.
func (s *Source) held(e *entry, err error) bool {
	s.cache.mu.Lock()
	defer s.cache.mu.Unlock()
	e.away = err
	return e.held > 0
}

// hold takes note that a store is away and will be asked again, and returns what is closed when it is back.
func (s *Source) hold(e *entry, err error, waited time.Duration) <-chan struct{} {
	s.cache.mu.Lock()
	defer s.cache.mu.Unlock()
	s.failed(err)
	s.logWait(e, err, waited)
	return s.back
}

// slow is called when a fetch takes long. If a read waits for it the store counts as away until it answers, and the log
// tells.
func (s *Source) slow(e *entry) {
	s.cache.mu.Lock()
	defer s.cache.mu.Unlock()
	if e.waiting == 0 || e.data != nil || e.err != nil {
		return
	}
	s.awayN = max(s.awayN, 1)
	s.logWait(e, e.away, slowFetch)
}

// logWait logs that reads wait for an entry: of many at once the first, and one now and then. It changes nothing that
// decides what is fetched.
func (s *Source) logWait(e *entry, err error, waited time.Duration) {
	now := time.Now()
	if !s.told.IsZero() && now.Sub(s.told) < tellAgain {
		return
	}
	s.told = now
	image, chunk := e.first.image, e.first.image.index.At(e.first.chunk)
	s.cache.limits.Log.Warn("reads wait for the store", "image", image.name, "chunk", chunk.Digest.String(),
		"offset", chunk.Offset, "waited", waited.Round(time.Millisecond), "error", err)
}

// pause waits, not longer than until back is closed, and says whether the context goes on.
func pause(ctx context.Context, wait time.Duration, back <-chan struct{}) bool {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
	case <-back:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}
