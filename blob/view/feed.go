package view

import (
	"slices"
	"time"
)

const (
	feedSteps = 4096                  // chunks that a feed looks at in one go, while nobody else can have the cache
	untried   = 10 * time.Millisecond // for which the link may be busy with a profile that has not proved itself
	fillDelay = 25 * time.Millisecond // for which the link may be busy with filling
	passPause = time.Second
	fullPause = 10 * time.Second
)

// feed names chunks that nobody asked for, one after the other, for as long as there is room for them. Guarded by
// the cache's mutex.
type feed struct {
	image *Image
	rank  rank
	list  []int // chunks in order; nil when all are meant
	at    int
	again []int // chunks that could not be had
	rate  int64 // bytes a second; 0 is no limit
	next  time.Time
	taken int64 // bytes, so far
	onWay int   // chunks
}

// len is how many chunks the feed has in all.
func (f *feed) len() int {
	if f.list != nil {
		return len(f.list)
	}
	return f.image.index.Len()
}

// chunk is the feed's i-th chunk.
func (f *feed) chunk(i int) int {
	if f.list != nil {
		return f.list[i]
	}
	return i
}

// step is the next chunk that is not here, if one is found at once; more says that the feed has not ended.
func (f *feed) step() (w wanted, found, more bool) {
	for range feedSteps {
		i, ok := f.advance()
		if !ok {
			return wanted{}, false, false
		}
		if w, ok := f.image.lacking(i); ok {
			return w, true, true
		}
	}
	return wanted{}, false, true
}

func (f *feed) advance() (chunk int, ok bool) {
	if f.at < f.len() {
		f.at++
		return f.chunk(f.at - 1), true
	}
	if n := len(f.again); n > 0 {
		chunk, f.again = f.again[0], f.again[1:]
		return chunk, true
	}
	return 0, false
}

// landed takes note that a chunk has come, or has it asked for again, in the end.
func (f *feed) landed(chunk int, err error) {
	f.onWay--
	if err == nil {
		return
	}
	if !slices.Contains(f.again, chunk) && len(f.again) < feedSteps {
		f.again = append(f.again, chunk)
	}
}

// pumpFeeds begins fetches for the feeds, the more urgent feed first.
func (s *Source) pumpFeeds() {
	for _, f := range slices.Clone(s.feeds) {
		for s.mayFeed(f) {
			w, found, more := f.step()
			if !found {
				s.paused(f, more)
				break
			}
			s.feed(f, w)
		}
	}
}

// feed fetches a chunk for a feed.
func (s *Source) feed(f *feed, w wanted) {
	f.taken += w.key.size
	if f.rank == filling {
		f.image.progress(f)
	}
	if f.rate > 0 {
		cost := time.Duration(float64(w.key.size) / float64(f.rate) * float64(time.Second))
		f.next = latest(f.next, time.Now().Add(-fillBurst)).Add(cost)
	}
	e := s.cache.add(w, f.rank)
	if e.err == nil {
		e.feed = f
		f.onWay++
	}
	if f.image.disk == nil {
		e.unread = true
		f.image.unread += w.key.size
	}
	if at := e.at; at != nil && e.queued != nil && at.may(e) {
		at.launch(e)
	}
}

// fillBurst is how much time a feed with a rate may make up for.
const fillBurst = 100 * time.Millisecond

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// paused goes on later with a feed that named nothing, or ends it.
func (s *Source) paused(f *feed, more bool) {
	switch {
	case more:
		f.next = time.Now()
		s.wakeAt(f.next)
	case f.onWay > 0: // what comes of them is not known yet
	case f.rank == filling && !f.image.filled():
		f.at = 0
		f.next = time.Now().Add(passPause)
		s.wakeAt(f.next)
	default:
		s.feeds = slices.DeleteFunc(s.feeds, func(other *feed) bool { return other == f })
	}
}

// mayFeed says whether a feed may name a chunk now.
func (s *Source) mayFeed(f *feed) bool {
	c, v := s.cache, f.image
	size := v.index.Params().Max
	now := time.Now()
	if now.Before(f.next) {
		s.wakeAt(f.next)
		return false
	}
	if v.disk == nil && v.unread+size > c.limit/2 || c.onWay+size > max(c.limit/2, size) || c.taken+min(size, c.limit) > c.limit {
		return false
	}
	if c.near.queues[f.rank].Len() >= nearSlots {
		return false
	}
	if f.rank == filling && !v.roomToFill() {
		f.next = now.Add(fullPause)
		s.wakeAt(f.next)
		return false
	}
	delay, calm := s.patience(f)
	if calm && (s.demands > 0 || now.Before(s.quietAt)) {
		if s.demands == 0 {
			s.wakeAt(s.quietAt)
		}
		return false
	}
	if f.rank == foretold && calm {
		return s.flying == 0 && s.mayAhead(size, delay) // a doubtful profile: a chunk at a time
	}
	return s.mayAhead(size, delay)
}

// patience is for how long a feed may keep the link busy, and whether it has to wait until nobody else does.
func (s *Source) patience(f *feed) (delay time.Duration, calm bool) {
	switch {
	case f.rank == filling:
		return fillDelay, true
	case !f.image.trust.deserved():
		return untried, true
	case f.image.trust.seen < trustLeast:
		return untried, false
	}
	return queueDelay, false
}
