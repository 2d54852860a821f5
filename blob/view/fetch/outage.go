package fetch

import (
	"errors"
	"time"

	"cairn/store"
)

// logInterval is the least time between two log messages about one outage.
const logInterval = 30 * time.Second

// backoff is the wait between attempts after consecutive failures.
var backoff = store.Backoff{First: 100 * time.Millisecond, Max: 5 * time.Second}

// outage tracks whether a store is unavailable. Not safe for concurrent use.
type outage struct {
	failures int           // consecutive failures; 0 if the store is available
	until    time.Time     // no prefetch starts before this time
	over     chan struct{} // closed by the next successful fetch
	loggedAt time.Time     // time of the last log message; zero if the outage was not logged
}

// noteFailure records a failed fetch. If the store is unavailable, prefetches back off.
func (o *outage) noteFailure(err error, now time.Time) {
	if errors.Is(err, store.ErrUnavailable) {
		o.failures++
		o.until = now.Add(backoff.Wait(o.failures))
	}
}

// noteSlow records a slow fetch. The store counts as unavailable until a fetch succeeds.
func (o *outage) noteSlow() { o.failures = max(o.failures, 1) }

// endOutage records a successful fetch. It reports whether an outage ended that was logged.
func (o *outage) endOutage() (logged bool) {
	if o.failures == 0 {
		return false
	}
	logged = !o.loggedAt.IsZero()
	close(o.over)
	*o = outage{over: make(chan struct{})}
	return logged
}

// mayLog reports whether the outage may be logged now. If so, it records the time.
func (o *outage) mayLog(now time.Time) bool {
	if !o.loggedAt.IsZero() && now.Sub(o.loggedAt) < logInterval {
		return false
	}
	o.loggedAt = now
	return true
}
