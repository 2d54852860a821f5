package fetch

import (
	"slices"
	"time"
)

const (
	feedScan    = 4096                   // limit of the chunks that one call of nextFeedChunk looks at, with the lock held
	rewindPause = time.Second            // pause before a feed starts again
	feedBurst   = 100 * time.Millisecond // time that a feed with a rate may catch up
)

// Feed names chunks to prefetch. The Cache calls its methods one at a time with its lock held: they must return at
// once and must not call the Cache.
type Feed interface {
	// Next returns the next chunk. wanted reports whether the chunk must be fetched. more is false at the end of the
	// feed.
	Next() (chunk int, wanted, more bool)
	// Rewind is called after Next returned no more chunks and all fetches have ended. It reports whether Next starts
	// again.
	Rewind() bool
	// Budget returns the current limits of the feed.
	Budget() Budget
}

// Budget limits the use of a source by a feed.
type Budget struct {
	Delay time.Duration // limit of the delay of a demand fetch by the feed's fetches
	Idle  bool          // fetch only while no demand fetch is in flight, nor was in the last 100 ms
	Alone bool          // fetch only while no other fetch is in flight
	Pause time.Duration // fetch nothing for this time
}

// feed is the state of a client's Feed at its source. Not safe for concurrent use.
type feed struct {
	Feed
	client   *Client
	priority Priority
	rate     int64     // bytes a second; 0 is no limit
	next     time.Time // no fetch before this time
	failed   []int     // chunks to retry at the end
	pending  int       // chunks that are queued or being fetched
	run      int64     // bytes that are left of the run of chunks that is being requested
}

// nextChunk returns the feed's next chunk, the failed ones last. wanted reports whether it must be fetched.
func (f *feed) nextChunk() (w want, wanted, more bool) {
	chunk, wanted, more := f.Next()
	if !more && len(f.failed) > 0 {
		chunk, wanted, more = f.failed[0], true, true
		f.failed = f.failed[1:]
	}
	if !wanted || !f.client.needsFetch(chunk) {
		return want{}, false, more
	}
	return f.client.wantOf(chunk), true, more
}

func (f *feed) pauseFor(now time.Time, wait time.Duration) { f.next = now.Add(wait) }

// chargeRate records a fetch of size bytes, and sets the time of the next fetch by the feed's rate.
func (f *feed) chargeRate(size int64, now time.Time) {
	if f.rate == 0 {
		return
	}
	if least := now.Add(-feedBurst); f.next.Before(least) {
		f.next = least
	}
	f.next = f.next.Add(time.Duration(float64(size) / float64(f.rate) * float64(time.Second)))
}

// noteOutcome records the result of a fetch. A failed chunk is retried at the end.
func (f *feed) noteOutcome(chunk int, err error) {
	f.pending--
	if err != nil && len(f.failed) < feedScan && !slices.Contains(f.failed, chunk) {
		f.failed = append(f.failed, chunk)
	}
}
