package sftp

import (
	"cmp"
	"context"
	"math"
	"slices"
	"sync"
	"time"
)

// lines are a bucket's places for connections. Safe for concurrent use.
type lines struct {
	mu  sync.Mutex // guards what follows, and the lines in it
	all []*line
}

// line is a place for a connection. It is opened when a call comes to it, and again when it has failed.
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
		l, a := b.lines.enter(b.begin)
		select {
		case <-a.ready:
		case <-ctx.Done():
			b.lines.leave(l)
			return nil, nil, ctx.Err()
		}
		if a.err == nil {
			return l, a.conn, nil
		}
		b.lines.leave(l)
		if !b.lines.avoid(l, time.Now().Add(b.o.Patience)) {
			return nil, nil, a.err
		}
	}
}

// enter adds a call to the best line, and begins to open that if it is not.
func (s *lines) enter(begin func() *attempt) (*line, *attempt) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	l := slices.MinFunc(s.all, func(x, y *line) int { return cmp.Compare(x.rank(now), y.rank(now)) })
	l.calls++
	if !l.usable() {
		l.attempt = begin()
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

func (s *lines) leave(l *line) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.calls--
}

// avoid has calls pass over a line that could not be opened, until then, and reports whether there is another.
func (s *lines) avoid(l *line, until time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.after = until
	return slices.ContainsFunc(s.all, (*line).usable)
}

// close ends the connections. Nothing is opened once die has been called.
func (s *lines) close(die func(), opening *sync.WaitGroup) {
	s.mu.Lock()
	die()
	s.mu.Unlock()
	opening.Wait()
	var closing sync.WaitGroup
	defer closing.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.all {
		if a := l.attempt; a != nil && a.err == nil {
			l.attempt = nil
			closing.Go(a.conn.close)
		}
	}
}

// Close closes the connections. Calls in flight have two seconds (grace) to end. Later calls fail.
func (b *Bucket) Close() error {
	b.lines.close(b.die, &b.work)
	return nil
}
