package fetch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"cairn/blob"
	"cairn/store"
)

// errStall is the cause of a wait that took too long.
var errStall = errors.New("the store did not answer in time")

// Wait returns the bytes of an entry, which must not be changed. Giving up does not end the fetch. When another client's
// store failed to give the chunk, this one's is asked; and it is asked again when the fetch had begun before a read waited.
func (c *Client) Wait(ctx context.Context, e *Entry, chunk int) ([]byte, error) {
	data, err := c.waitHolding(ctx, e, chunk)
	if err != nil && ctx.Err() == nil && c.mayDoBetter(e) {
		return c.waitHolding(ctx, c.Refetch(chunk), chunk)
	}
	return data, err
}

// mayDoBetter reports whether this client's store, asked now, may bring a chunk whose entry failed: if another store was
// asked, or the fetch began before a read waited for it, so that the fault may be mended by now.
func (c *Client) mayDoBetter(e *Entry) bool {
	if e.source != c.source {
		return true
	}
	select {
	case <-e.ready:
		return e.early
	default:
		return false
	}
}

// waitHolding waits for an entry, and if its store is unavailable asks again until Hold ends. The entry may have failed
// because no read waited for it just then: a read of several chunks waits for one after the other.
func (c *Client) waitHolding(ctx context.Context, e *Entry, chunk int) ([]byte, error) {
	select {
	case <-e.ready:
		if !c.holds(e.err) {
			return e.data, e.err
		}
	default:
	}
	if c.hold > 0 && c.hold < ForEver {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, c.hold, errStall)
		defer cancel()
	}
	for {
		data, err := c.await(ctx, e, chunk)
		if ctx.Err() != nil || !c.holds(err) {
			return data, err
		}
		e = c.Refetch(chunk)
	}
}

// holds reports whether a read waits for a store that failed with err.
func (c *Client) holds(err error) bool {
	return c.hold > 0 && errors.Is(err, store.ErrUnavailable) && c.cache.ctx.Err() == nil
}

// await waits for an entry.
func (c *Client) await(ctx context.Context, e *Entry, chunk int) ([]byte, error) {
	s := c.stalls.begin(e, c.index.At(chunk), c.hold > 0)
	defer c.stalls.end(s)
	select {
	case <-e.ready:
		return e.data, e.err
	case <-ctx.Done():
		return nil, c.gaveUp(ctx, e)
	}
}

// gaveUp returns why a wait ended.
func (c *Client) gaveUp(ctx context.Context, e *Entry) error {
	if context.Cause(ctx) != errStall { //nolint:errorlint // this very value is set above
		return ctx.Err()
	}
	if err := e.failure(); err != nil {
		return fmt.Errorf("%w (%v): %w", errStall, c.hold, err)
	}
	return fmt.Errorf("%w (%v)", errStall, c.hold)
}

// Stall is a read that waits.
type Stall struct {
	Chunk blob.Chunk // that it waits for
	Since time.Time
	Err   error // why the store did not answer, when it is unavailable
}

// stall is a Stall that goes on.
type stall struct {
	Stall
	entry *Entry
	holds bool
}

// stalls are a client's waits. The zero value is ready. Safe for concurrent use.
type stalls struct {
	mu    sync.Mutex // guards what follows
	now   map[*stall]struct{}
	count int64
	time  time.Duration
}

func (s *stalls) begin(e *Entry, chunk blob.Chunk, holds bool) *stall {
	one := &stall{Stall{Chunk: chunk, Since: time.Now()}, e, holds}
	e.addWaiter(1, holds)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now == nil {
		s.now = map[*stall]struct{}{}
	}
	s.now[one] = struct{}{}
	s.count++
	return one
}

func (s *stalls) end(one *stall) {
	one.entry.addWaiter(-1, one.holds)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.now, one)
	s.time += time.Since(one.Since)
}

// report fills in what Stats tells of stalls.
func (s *stalls) report(to *Stats) {
	s.mu.Lock()
	defer s.mu.Unlock()
	to.Stalls, to.StallTime = s.count, s.time
	for one := range s.now {
		w := one.Stall
		w.Err = one.entry.failure()
		to.Waiting = append(to.Waiting, w)
	}
	slices.SortFunc(to.Waiting, func(a, b Stall) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Chunk.Offset, b.Chunk.Offset))
	})
}
