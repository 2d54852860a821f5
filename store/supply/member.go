package supply

import (
	"context"
	"errors"
	"sync"
	"time"

	"cairn/store"
)

// member is one of several stores, with its health.
type member struct {
	from    store.Getter
	link    *Link
	local   bool // on this machine: many chunks are requested together
	noHedge bool // requests are not hedged
	pauses  *store.Pauses

	mu         sync.Mutex // guards the fields below
	failures   int        // consecutive failures
	backoffEnd time.Time  // when its backoff ends; it is asked last until then
	probeEnd   time.Time  // until then no further request probes the store
}

// memberBackoff is the backoff of a failed store.
var memberBackoff = store.Backoff{First: 2 * time.Second, Max: time.Minute}

// get blocks until the link lets the request in, then gets one chunk.
func (m *member) get(ctx context.Context, w store.Want) error {
	release, err := m.link.acquire(ctx)
	if err != nil {
		return err
	}
	return m.getAdmitted(ctx, w, release)
}

// errPaused is the outcome of a request whose duration means nothing, because the process was stopped.
var errPaused = errors.New("the process was stopped")

// maxRepeats is how often a request is repeated at once because the process was stopped meanwhile.
const maxRepeats = 3

// getAdmitted gets one chunk for a request that the link has let in. A request that failed while the process was stopped
// is repeated, and does not count.
func (m *member) getAdmitted(ctx context.Context, w store.Want, release func(bytes int, err error)) error {
	watch := m.pauses.Watch()
	defer watch.End()
	var err error
	paused := false
	for range maxRepeats + 1 {
		err = store.GetOne(ctx, m.from, w.Digest, w.Dst)
		stopped := watch.WasStopped()
		paused = paused || stopped
		if !stopped || !errors.Is(err, store.ErrUnavailable) || ctx.Err() != nil {
			break
		}
	}
	outcome := err
	if paused {
		outcome = errPaused
	}
	release(len(w.Dst), outcome)
	m.updateHealth(ctx, err)
	return err
}

// updateHealth updates the health after an outcome. Only absence and correct bytes make the store
// healthy. Corrupt bytes and a cancelled request change nothing.
func (m *member) updateHealth(ctx context.Context, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, corrupt := errors.AsType[*store.CorruptError](err)
	switch {
	case err == nil || errors.Is(err, store.ErrNotFound):
		m.failures, m.backoffEnd = 0, time.Time{}
	case corrupt || ctx.Err() != nil:
	default:
		m.backOff(err)
	}
}

// backOff starts a backoff, during which the store is asked last, unless one is under way. The
// caller holds mu.
func (m *member) backOff(err error) {
	now := time.Now()
	if now.Before(m.backoffEnd) {
		return
	}
	m.failures++
	wait := memberBackoff.Longest(m.failures)
	if busy, ok := errors.AsType[*store.UnavailableError](err); ok {
		wait = max(wait, min(busy.After, store.LongestAsked))
	}
	m.backoffEnd = now.Add(wait)
}

// noteOvertaken is called when another store answered first. A store that answers no request at all
// is unhealthy.
func (m *member) noteOvertaken() {
	if !m.link.isSilent() {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.backOff(nil)
}

// isFailing reports whether the last outcome that counted was a failure.
func (m *member) isFailing() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.failures > 0
}

// healthyOrProbe reports whether the store keeps its place in the order. After its backoff it
// returns true to a single request, the probe. For other requests the store comes last until the
// probe succeeds, or for 2 s; then the next request is the probe.
func (m *member) healthyOrProbe(now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failures == 0 {
		return true
	}
	if now.Before(m.backoffEnd) || now.Before(m.probeEnd) {
		return false
	}
	m.probeEnd = now.Add(memberBackoff.First)
	return true
}
