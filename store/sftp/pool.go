package sftp

import (
	"cmp"
	"context"
	"math"
	"slices"
	"sync"
	"time"
)

// connPool holds a bucket's connections in a fixed number of slots. It is safe for concurrent use.
type connPool struct {
	mu    sync.Mutex // guards the slots
	slots []*connSlot
}

// connSlot is a slot for a connection. A call opens the connection if it is not open or has failed.
type connSlot struct {
	calls   int // calls that use the connection or wait for it
	attempt *attempt
	after   time.Time // backoff: no new attempt before this time while other slots are usable
}

// attempt is an attempt to open a connection. conn and err do not change after ready is closed.
type attempt struct {
	ready chan struct{}
	conn  *conn
	err   error
}

// hasFailed reports whether the attempt, or its connection, has failed.
func (a *attempt) hasFailed() bool {
	select {
	case <-a.ready:
		return a.err != nil || a.conn.failed()
	default:
		return false
	}
}

// isUsable reports whether the slot has a connection or is opening one.
func (l *connSlot) isUsable() bool { return l.attempt != nil && !l.attempt.hasFailed() }

// rank returns the rank of a slot for the next call; the lowest is best. An idle connection is
// best, then a new one, then the one with the fewest calls. A slot in backoff comes last.
func (l *connSlot) rank(now time.Time) int {
	usable := l.isUsable()
	switch {
	case usable && l.calls == 0:
		return 0
	case usable:
		return 1 + l.calls
	case now.After(l.after):
		return 1
	}
	return math.MaxInt
}

// connect returns a slot and its open connection. The caller must release the slot. If the server
// allows fewer connections than Options.Connections, calls share the open ones.
func (b *Bucket) connect(ctx context.Context) (*connSlot, *conn, error) {
	for {
		l, a := b.pool.acquire(b.startAttempt)
		select {
		case <-a.ready:
		case <-ctx.Done():
			b.pool.release(l)
			return nil, nil, ctx.Err()
		}
		if a.err == nil {
			return l, a.conn, nil
		}
		b.pool.release(l)
		if !b.pool.backOff(l, time.Now().Add(b.o.Patience)) {
			return nil, nil, a.err
		}
	}
}

// acquire adds a call to the best slot. If that is not usable, acquire calls begin to open it.
func (s *connPool) acquire(begin func() *attempt) (*connSlot, *attempt) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	l := slices.MinFunc(s.slots, func(x, y *connSlot) int { return cmp.Compare(x.rank(now), y.rank(now)) })
	l.calls++
	if !l.isUsable() {
		l.attempt = begin()
	}
	return l, l.attempt
}

// startAttempt opens a connection in the background for all waiting calls. A call that gives up
// does not cancel it.
func (b *Bucket) startAttempt() *attempt {
	a := &attempt{ready: make(chan struct{}), err: errClosed}
	if b.lifetime.Err() != nil {
		close(a.ready)
		return a
	}
	b.opening.Go(func() {
		a.conn, a.err = dial(b.lifetime, b.at, b.o)
		close(a.ready)
	})
	return a
}

func (s *connPool) release(l *connSlot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.calls--
}

// backOff sets a slot's backoff until the given time, and reports whether any slot is usable.
func (s *connPool) backOff(l *connSlot, until time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.after = until
	return slices.ContainsFunc(s.slots, (*connSlot).isUsable)
}

// close ends the connections and waits until they have ended. No connection is opened after cancel
// has been called.
func (s *connPool) close(cancel func(), opening *sync.WaitGroup) {
	s.mu.Lock()
	cancel()
	s.mu.Unlock()
	opening.Wait()
	var closing sync.WaitGroup
	defer closing.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.slots {
		if a := l.attempt; a != nil && a.err == nil {
			l.attempt = nil
			closing.Go(a.conn.close)
		}
	}
}

// Close closes the connections. Calls in flight have two seconds (grace) to end. Later calls fail.
func (b *Bucket) Close() error {
	b.pool.close(b.cancel, &b.opening)
	return nil
}
