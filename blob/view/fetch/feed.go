package fetch

import (
	"slices"
	"time"
)

const (
	feedSteps = 4096                   // chunks of a feed that are looked at in one go, with the lock held
	passPause = time.Second            // before a feed begins again
	feedBurst = 100 * time.Millisecond // time that a feed with a rate may make up for
)

// Feed names chunks to prefetch. The Cache calls its methods with its lock held, one at a time: they must return at once
// and must not call the Cache.
type Feed interface {
	// Next returns the next chunk. wanted is false if it need not be fetched; more is false when there is no other.
	Next() (chunk int, wanted, more bool)
	// Rewind is called when Next had no more and all chunks have come or failed. It reports whether Next begins again.
	Rewind() bool
	// Budget returns what the feed may use now.
	Budget() Budget
}

// Budget is what a feed may use of its source.
type Budget struct {
	Delay time.Duration // by which its fetches may delay a demand fetch
	Idle  bool          // only while no demand fetch is in flight, or was just now
	Alone bool          // only while no other fetch is in flight
	Pause time.Duration // nothing for so long
}

// feed is a Feed of a client, on its way through a source. Not safe for concurrent use.
type feed struct {
	Feed
	client   *Client
	priority Priority
	rate     int64     // bytes a second; 0 is no limit
	next     time.Time // when it may go on
	failed   []int     // chunks that are asked for again in the end
	onWay    int       // chunks
}

// step returns the feed's next chunk, the failed ones last. wanted reports whether it is to be fetched.
func (f *feed) step() (w want, wanted, more bool) {
	chunk, wanted, more := f.Next()
	if !more && len(f.failed) > 0 {
		chunk, wanted, more = f.failed[0], true, true
		f.failed = f.failed[1:]
	}
	if !wanted || !f.client.lacks(chunk) {
		return want{}, false, more
	}
	return f.client.want(chunk), true, more
}

func (f *feed) pause(now time.Time, wait time.Duration) { f.next = now.Add(wait) }

// pay notes that the feed takes so many bytes, which its rate may limit.
func (f *feed) pay(size int64, now time.Time) {
	if f.rate == 0 {
		return
	}
	if least := now.Add(-feedBurst); f.next.Before(least) {
		f.next = least
	}
	f.next = f.next.Add(time.Duration(float64(size) / float64(f.rate) * float64(time.Second)))
}

// noteOutcome notes that a chunk has come, or has it asked for again in the end.
func (f *feed) noteOutcome(chunk int, err error) {
	f.onWay--
	if err != nil && len(f.failed) < feedSteps && !slices.Contains(f.failed, chunk) {
		f.failed = append(f.failed, chunk)
	}
}
