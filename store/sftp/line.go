package sftp

import (
	"cmp"
	"context"
	"math"
	"slices"
	"sync"
	"time"
)

// line is a place for a connection. It is opened when a call comes to it, and again when it has failed. The
// bucket's lock guards it.
type line struct {
	calls   int // that have it or wait for it
	attempt *attempt
	after   time.Time // when to open it again, as long as others are open
}

// attempt is one to open a connection. Once ready is closed, the rest does not change.
type attempt struct {
	ready chan struct{}
	conn  *conn
	err   error
}

// over says that nothing more will come of it.
func (a *attempt) over() bool {
	select {
	case <-a.ready:
		return a.err != nil || a.conn.failed()
	default:
		return false
	}
}

// usable says that there is a connection, or that there may soon be one.
func (l *line) usable() bool { return l.attempt != nil && !l.attempt.over() }

// rank is how good a line is for the next call, the lowest being best: one that idles, then a new one, then the
// one with the fewest calls; one that could not be opened lately comes last.
func (l *line) rank(now time.Time) int {
	usable := l.usable()
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

// connect is a connection that works as far as is known. The caller leaves its line in the end. Where a server
// wants fewer connections than we may have, calls share those that there are.
func (b *Bucket) connect(ctx context.Context) (*line, *conn, error) {
	for {
		l, a := b.enter()
		select {
		case <-a.ready:
		case <-ctx.Done():
			b.leave(l)
			return nil, nil, ctx.Err()
		}
		if a.err == nil {
			return l, a.conn, nil
		}
		b.leave(l)
		if !b.avoid(l) {
			return nil, nil, a.err
		}
	}
}

// enter adds a call to the best line, and begins to open that if it is not.
func (b *Bucket) enter() (*line, *attempt) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	l := slices.MinFunc(b.lines, func(x, y *line) int { return cmp.Compare(x.rank(now), y.rank(now)) })
	l.calls++
	if !l.usable() {
		l.attempt = b.begin()
	}
	return l, l.attempt
}

// begin opens a connection for all who wait, whoever of them gives up.
func (b *Bucket) begin() *attempt {
	a := &attempt{ready: make(chan struct{}), err: errClosed}
	if b.life.Err() != nil {
		close(a.ready)
		return a
	}
	b.work.Go(func() {
		a.conn, a.err = dial(b.life, b.at, b.o)
		close(a.ready)
	})
	return a
}

func (b *Bucket) leave(l *line) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l.calls--
}

// avoid has calls pass over a line that could not be opened, for a while, and says whether there is another.
func (b *Bucket) avoid(l *line) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	l.after = time.Now().Add(b.o.Patience)
	return slices.ContainsFunc(b.lines, (*line).usable)
}

// Close ends the connections, and with them what is under way. Calls that come later fail.
func (b *Bucket) Close() error {
	b.mu.Lock()
	b.die() // nothing is opened from now on
	b.mu.Unlock()
	b.work.Wait()
	var closing sync.WaitGroup
	b.mu.Lock()
	for _, l := range b.lines {
		if a := l.attempt; a != nil && a.err == nil {
			l.attempt = nil
			closing.Go(a.conn.close)
		}
	}
	b.mu.Unlock()
	closing.Wait()
	return nil
}
