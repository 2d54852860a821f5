package fetch

import (
	"errors"
	"time"

	"cairn/store"
)

// logAgain is the time between two lines of the log about one outage.
const logAgain = 30 * time.Second

// backoff is how long a store is left alone after failures in a row.
var backoff = store.Backoff{First: 100 * time.Millisecond, Max: 5 * time.Second}

// outage tracks whether a store is unavailable. Not safe for concurrent use.
type outage struct {
	failures int           // in a row; 0: the store answers
	until    time.Time     // no prefetch begins before
	over     chan struct{} // closed when the store answers
	loggedAt time.Time     // zero: not since the store answered
}

// noteFailure notes that a fetch failed. Prefetches leave an unavailable store alone for a while.
func (o *outage) noteFailure(err error, now time.Time) {
	if errors.Is(err, store.ErrUnavailable) {
		o.failures++
		o.until = now.Add(backoff.Wait(o.failures))
	}
}

// noteSlow notes that the store does not answer in a usual time: it counts as unavailable until it does.
func (o *outage) noteSlow() { o.failures = max(o.failures, 1) }

// endOutage notes that the store answered. It reports whether its outage was logged.
func (o *outage) endOutage() (logged bool) {
	if o.failures == 0 {
		return false
	}
	logged = !o.loggedAt.IsZero()
	close(o.over)
	*o = outage{over: make(chan struct{})}
	return logged
}

// answers returns a channel that is closed when the store answers.
func (o *outage) answers() <-chan struct{} { return o.over }

// mayLog reports whether the log gets one more line about the outage, and notes that it does.
func (o *outage) mayLog(now time.Time) bool {
	if !o.loggedAt.IsZero() && now.Sub(o.loggedAt) < logAgain {
		return false
	}
	o.loggedAt = now
	return true
}
