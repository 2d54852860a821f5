package supply

import (
	"context"
	"errors"
	"sync"
	"time"

	"cairn/store"
)

// member is one of several stores, with what is known of its health.
type member struct {
	from  store.Getter
	link  *Link
	local bool // on this machine: many chunks are read together
	once  bool // no request is sent twice

	mu    sync.Mutex // guards what follows
	fails int        // times in a row
	until time.Time  // when its backoff ends; it is asked last until then
	probe time.Time  // until then a request is finding out whether it is healthy again
}

// healing is the backoff of a store that failed.
var healing = store.Backoff{First: 2 * time.Second, Max: time.Minute}

// get gets one chunk, when the link lets it in.
func (m *member) get(ctx context.Context, w store.Want) error {
	leave, err := m.link.enter(ctx)
	if err != nil {
		return err
	}
	return m.getInside(ctx, w, leave)
}

// getInside gets one chunk that the link has let in.
func (m *member) getInside(ctx context.Context, w store.Want, leave func(bytes int, err error)) error {
	err := store.GetOne(ctx, m.from, w.Digest, w.Dst)
	leave(len(w.Dst), err)
	m.judge(ctx, err)
	return err
}

// judge learns from an outcome. Absence and other bytes are answers too; a cancelled request is none.
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

// backOff has the store asked last for a while, unless it is already. The caller holds mu.
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

// overtaken learns that another store answered first. A store that answers no request at all is not healthy.
func (m *member) overtaken() {
	if !m.link.silent() {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.backOff(nil)
}

// failing reports whether the store failed when it was asked last.
func (m *member) failing() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.fails > 0
}

// healthy reports whether the store is asked in its turn. After its backoff one request probes it; the others go on
// without it until that has succeeded.
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
