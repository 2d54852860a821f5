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
	from  store.Getter
	link  *Link
	local bool // on this machine: many chunks are requested together
	once  bool // no request is sent twice

	mu    sync.Mutex // guards the fields below
	fails int        // consecutive failures
	until time.Time  // when its backoff ends; it is asked last until then
	probe time.Time  // until then one request probes whether it is healthy again
}

// healing is the backoff of a failed store.
var healing = store.Backoff{First: 2 * time.Second, Max: time.Minute}

// get blocks until the link lets the request in, then gets one chunk.
func (m *member) get(ctx context.Context, w store.Want) error {
	leave, err := m.link.enter(ctx)
	if err != nil {
		return err
	}
	return m.getInside(ctx, w, leave)
}

// getInside gets one chunk for a request that the link has let in.
func (m *member) getInside(ctx context.Context, w store.Want, leave func(bytes int, err error)) error {
	err := store.GetOne(ctx, m.from, w.Digest, w.Dst)
	leave(len(w.Dst), err)
	m.judge(ctx, err)
	return err
}

// judge updates the health after an outcome. Only absence and correct bytes make the store healthy.
// Corrupt bytes and a cancelled request change nothing.
func (m *member) judge(ctx context.Context, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, corrupt := errors.AsType[*store.CorruptError](err)
	switch {
	case err == nil || errors.Is(err, store.ErrNotFound):
		m.fails, m.until = 0, time.Time{}
	case corrupt || ctx.Err() != nil:
	default:
		m.backOff(err)
	}
}

// backOff starts a backoff, during which the store is asked last, unless one is under way. The
// caller holds mu.
func (m *member) backOff(err error) {
	now := time.Now()
	if now.Before(m.until) {
		return
	}
	m.fails++
	wait := healing.Longest(m.fails)
	if busy, ok := errors.AsType[*store.UnavailableError](err); ok {
		wait = max(wait, min(busy.After, store.LongestAsked))
	}
	m.until = now.Add(wait)
}

// overtaken is called when another store answered first. A store that answers no request at all is
// unhealthy.
func (m *member) overtaken() {
	if !m.link.silent() {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.backOff(nil)
}

// failing reports whether the last outcome that counted was a failure.
func (m *member) failing() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.fails > 0
}

// healthy reports whether the store is asked in its turn. After its backoff a single request probes
// it. Other requests ask it last until the probe succeeds, or for 2 s; then the next one probes.
func (m *member) healthy(now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fails == 0 {
		return true
	}
	if now.Before(m.until) || now.Before(m.probe) {
		return false
	}
	m.probe = now.Add(healing.First)
	return true
}
