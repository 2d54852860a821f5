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

// errStall is the error of a read that was blocked for longer than Hold.
var errStall = errors.New("the store did not answer in time")

// Wait blocks until an entry has its chunk, and returns the bytes, which the caller must not change. The end of ctx
// does not cancel the fetch. If the entry failed, Wait fetches the chunk once more when the failed fetch used another
// client's store, or started before a read waited for it.
func (c *Client) Wait(ctx context.Context, e *Entry, chunk int) ([]byte, error) {
	data, err := c.waitRetrying(ctx, e, chunk)
	if err != nil && ctx.Err() == nil && c.mayRefetch(e) {
		return c.waitRetrying(ctx, c.Refetch(chunk), chunk)
	}
	return data, err
}

// mayRefetch reports whether a new fetch of a failed entry may succeed: the failed fetch used another store, or it
// started before a read waited for it, so the fault may have ended.
func (c *Client) mayRefetch(e *Entry) bool {
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

// waitRetrying waits for an entry, and retries until Hold has passed while the store is unavailable. The entry may
// have failed already because no read waited for it: a read of several chunks waits for them one after the other.
func (c *Client) waitRetrying(ctx context.Context, e *Entry, chunk int) ([]byte, error) {
	select {
	case <-e.ready:
		if !c.mayRetry(e.err) {
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
		data, err := c.waitOnce(ctx, e, chunk)
		if ctx.Err() != nil || !c.mayRetry(err) {
			return data, err
		}
		e = c.Refetch(chunk)
	}
}

// mayRetry reports whether a read blocks and retries after err.
func (c *Client) mayRetry(err error) bool {
	return c.hold > 0 && errors.Is(err, store.ErrUnavailable) && c.cache.ctx.Err() == nil
}

// waitOnce waits for an entry, and counts the wait as a stall.
func (c *Client) waitOnce(ctx context.Context, e *Entry, chunk int) ([]byte, error) {
	s := c.stalls.addStall(e, c.index.At(chunk), c.hold > 0)
	defer c.stalls.endStall(s)
	select {
	case <-e.ready:
		return e.data, e.err
	case <-ctx.Done():
		return nil, c.waitError(ctx, e)
	}
}

// waitError returns the error of a wait that ctx ended.
func (c *Client) waitError(ctx context.Context, e *Entry) error {
	if context.Cause(ctx) != errStall { //nolint:errorlint // WithTimeoutCause sets this very value
		return ctx.Err()
	}
	if err := e.lastError(); err != nil {
		return fmt.Errorf("%w (%v): %w", errStall, c.hold, err)
	}
	return fmt.Errorf("%w (%v)", errStall, c.hold)
}

// Stall is a read that blocks on a chunk.
type Stall struct {
	Chunk blob.Chunk // the chunk to wait for
	Since time.Time
	Err   error // error of the unavailable store, or nil
}

// stall is a Stall that has not ended.
type stall struct {
	Stall
	entry   *Entry
	retries bool
}

// stalls tracks the waits of a client. The zero value is ready. Safe for concurrent use.
type stalls struct {
	mu    sync.Mutex          // guards the fields below
	now   map[*stall]struct{} // waits that have not ended
	count int64               // all waits
	time  time.Duration       // sum of the waits that have ended
}

func (s *stalls) addStall(e *Entry, chunk blob.Chunk, retries bool) *stall {
	one := &stall{Stall{Chunk: chunk, Since: time.Now()}, e, retries}
	e.addWaiters(1, retries)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now == nil {
		s.now = map[*stall]struct{}{}
	}
	s.now[one] = struct{}{}
	s.count++
	return one
}

func (s *stalls) endStall(one *stall) {
	one.entry.addWaiters(-1, one.retries)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.now, one)
	s.time += time.Since(one.Since)
}

// fillStats sets the fields of Stats about stalls.
func (s *stalls) fillStats(to *Stats) {
	s.mu.Lock()
	defer s.mu.Unlock()
	to.Stalls, to.StallTime = s.count, s.time
	for one := range s.now {
		w := one.Stall
		w.Err = one.entry.lastError()
		to.Waiting = append(to.Waiting, w)
	}
	slices.SortFunc(to.Waiting, func(a, b Stall) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Chunk.Offset, b.Chunk.Offset))
	})
}
