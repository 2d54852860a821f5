package store

import (
	"context"
	"errors"
	"sync"
	"time"

	"cairn/blob"
)

// member is a source, with what is known of how it is.
type member struct {
	Source

	mu      sync.Mutex // guards what follows
	answers answers
	fails   int       // times in a row
	until   time.Time // it is to be asked last
	trial   time.Time // until then somebody finds out whether it is well again
}

const (
	firstRest   = 2 * time.Second // how long a source that failed once is asked last
	longestRest = time.Minute
)

// enter waits for the turn of a request; the caller hands leave to get.
func (m *member) enter(ctx context.Context) (leave func(bytes int, throttled bool), err error) {
	if m.Gate == nil {
		return func(int, bool) {}, nil
	}
	return m.Gate.enter(ctx)
}

// get asks the source, and takes note of how it answers.
func (m *member) get(ctx context.Context, leave func(int, bool), d blob.Digest, dst []byte) error {
	begun := time.Now()
	err := m.Getter.Get(ctx, d, dst)
	bytes := 0
	if err == nil {
		bytes = len(dst)
	}
	leave(bytes, throttled(err))
	m.note(ctx, time.Since(begun), err)
	return err
}

func (m *member) enterAndGet(ctx context.Context, d blob.Digest, size int) entrant {
	leave, err := m.enter(ctx)
	if err != nil {
		return entrant{err: err}
	}
	dst := make([]byte, size)
	return entrant{data: dst, err: m.get(ctx, leave, d, dst)}
}

// throttled says that a store asked to be left alone.
func throttled(err error) bool {
	busy, ok := errors.AsType[*UnavailableError](err)
	return ok && (busy.Throttled || busy.After > 0)
}

// note takes note of an answer. Absence and other bytes are answers too; a cancelled request is none.
func (m *member) note(ctx context.Context, took time.Duration, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, corrupt := errors.AsType[*CorruptError](err)
	switch {
	case err == nil:
		m.answers.add(took)
		m.fails, m.until = 0, time.Time{}
	case errors.Is(err, ErrNotFound):
		m.answers.last = time.Now()
		m.fails, m.until = 0, time.Time{}
	case corrupt || ctx.Err() != nil:
	default:
		m.rest(err)
	}
}

// rest has the source asked last for a while, unless it is already. The caller holds mu.
func (m *member) rest(err error) {
	now := time.Now()
	if now.Before(m.until) {
		return
	}
	wait := min(firstRest<<min(m.fails, 10), longestRest)
	m.fails++
	if busy, ok := errors.AsType[*UnavailableError](err); ok {
		wait = max(wait, min(busy.After, longestAsked))
	}
	m.until = now.Add(wait)
}

// late takes note that another source answered first. One that answers nobody is not well.
func (m *member) late() {
	if !m.silent() {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rest(nil)
}

// silent says whether the source has not answered anybody for an unusual time.
func (m *member) silent() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Since(m.answers.last) >= m.answers.unusual()
}

// well says whether the source is to be asked in its turn. When its rest is over, that is who asks first, and
// everybody else when that went well.
func (m *member) well(now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fails == 0 {
		return true
	}
	if now.Before(m.until) || now.Before(m.trial) {
		return false
	}
	m.trial = now.Add(firstRest)
	return true
}

// patience is how long to wait for an answer until a second request is sent.
func (m *member) patience() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.answers.unusual()
}

// answers tells usual times from unusual ones, as TCP does for its retransmissions (RFC 6298), with more
// room: objects are of many sizes.
type answers struct {
	count           int
	mean, deviation time.Duration
	last            time.Time // when the last one came
}

const (
	fewAnswers   = 16
	leastUnusual = 250 * time.Millisecond
	firstUnusual = 2 * time.Second // as long as there are few answers
	mostUnusual  = 15 * time.Second
)

func (a *answers) add(took time.Duration) {
	a.last = time.Now()
	if a.count++; a.count == 1 {
		a.mean, a.deviation = took, took/2
		return
	}
	a.deviation += ((took - a.mean).Abs() - a.deviation) / 4
	a.mean += (took - a.mean) / 8
}

func (a *answers) unusual() time.Duration {
	if a.count < fewAnswers {
		return firstUnusual
	}
	return min(max(2*a.mean+8*a.deviation, leastUnusual), mostUnusual)
}
