// Package loglimit limits the number of messages that others can cause, so that they cannot fill a log.
package loglimit

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	burst         = 20               // messages of a kind that are written at once
	refill        = 10 * time.Second // the time after which one more is
	firstInterval = time.Second      // between further messages of a kind
	lastInterval  = time.Minute      // the interval doubles up to this while messages are suppressed
)

// Limiter limits the messages of each kind. It writes 20 at once, and one more for each 10 s that have passed. Of
// further messages it writes one at the end of each interval, with the number of suppressed ones. The interval
// doubles from a second to a minute, and ends when it has passed without a message. The zero value is ready to use.
// Safe for concurrent use.
type Limiter struct {
	mu    sync.Mutex // guards the fields below
	kinds map[string]*kind
}

// kind is the state of the messages of a kind.
type kind struct {
	credit   time.Duration // a message costs refill
	updated  time.Time     // when credit was updated
	interval time.Duration // that the timer waits; 0: no timer
	last     func(suppressed int)
	pending  int // messages since the timer started; last writes the last of them
}

// Write calls write for a message of a kind, now or later, or suppresses the message. The argument is the number of
// messages that were suppressed before it. The kinds are few: a kind contains no text of others.
func (l *Limiter) Write(of string, write func(suppressed int)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.kinds[of]
	if k == nil {
		if l.kinds == nil {
			l.kinds = map[string]*kind{}
		}
		k = &kind{credit: burst * refill, updated: time.Now()}
		l.kinds[of] = k
	}
	if k.interval == 0 && k.spend(time.Now()) {
		write(0)
		return
	}
	k.last = write
	if k.pending++; k.interval == 0 {
		l.startInterval(k, firstInterval)
	}
}

// spend reports whether a message may be written at once.
func (k *kind) spend(now time.Time) bool {
	k.credit = min(burst*refill, k.credit+now.Sub(k.updated))
	k.updated = now
	if k.credit < refill {
		return false
	}
	k.credit -= refill
	return true
}

// startInterval writes the last of the pending messages of a kind after the interval. The caller holds mu.
func (l *Limiter) startInterval(k *kind, interval time.Duration) {
	k.interval = interval
	time.AfterFunc(interval, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.pending == 0 {
			k.interval = 0
			return
		}
		k.last(k.pending - 1)
		k.last, k.pending = nil, 0
		l.startInterval(k, min(2*interval, lastInterval))
	})
}

// Handler is a slog.Handler that passes messages on through a Limiter. Each text at each level is a kind, without
// its attributes. A message after suppressed ones has their number as the attribute "suppressed". Debug messages
// are not limited: they are logged only on request.
type Handler struct {
	next  slog.Handler
	limit *Limiter
}

// NewHandler returns a Handler that passes messages on to next.
func NewHandler(next slog.Handler, limit *Limiter) Handler { return Handler{next, limit} }

// Enabled implements slog.Handler.
func (h Handler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.next.Enabled(ctx, level)
}

// Handle implements slog.Handler. It does not return the errors of writing.
func (h Handler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelInfo {
		return h.next.Handle(ctx, r)
	}
	r = r.Clone()
	ctx = context.WithoutCancel(ctx)
	h.limit.Write(r.Level.String()+" "+r.Message, func(suppressed int) {
		if suppressed > 0 {
			r.AddAttrs(slog.Int("suppressed", suppressed))
		}
		_ = h.next.Handle(ctx, r)
	})
	return nil
}

// WithAttrs implements slog.Handler.
func (h Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return Handler{h.next.WithAttrs(attrs), h.limit}
}

// WithGroup implements slog.Handler.
func (h Handler) WithGroup(name string) slog.Handler { return Handler{h.next.WithGroup(name), h.limit} }
