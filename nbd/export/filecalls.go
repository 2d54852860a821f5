package export

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/semaphore"

	"cairn/nbd"
)

// maxCalls limits the calls of a directory that run at a time, and so the threads that a file system
// without an answer can block. It is larger than the usual number of connections.
const maxCalls = 256

// fileCalls runs calls that use the files of a directory, at most one for each name. A system call
// on a file system that does not answer cannot be cancelled. Therefore each call has a goroutine of
// its own. The caller stops waiting when its context ends; the call keeps its name until it returns.
type fileCalls struct {
	slots *semaphore.Weighted
	mu    sync.Mutex           // guards the field below, and late of all calls
	names map[string]*fileCall // running calls
}

// fileCall is a running call.
type fileCall struct {
	done chan struct{} // closed when the call has returned
	late bool          // its caller's deadline has passed
}

func newFileCalls() fileCalls {
	return fileCalls{slots: semaphore.NewWeighted(maxCalls), names: make(map[string]*fileCall)}
}

// callAs runs call when no other call has the name, and returns its result. If ctx ends first,
// callAs returns, and the late export is released.
func (c *fileCalls) callAs(ctx context.Context, name string, call func() (*nbd.Export, error)) (*nbd.Export, error) {
	for {
		other := c.lockName(name)
		if other == nil {
			return c.runLocked(ctx, name, call)
		}
		select {
		case <-other:
		case <-ctx.Done():
			return nil, notAnswered(ctx)
		}
	}
}

// tryCallAs is callAs, but returns at once if another call has the name.
func (c *fileCalls) tryCallAs(ctx context.Context, name string, call func() (*nbd.Export, error)) (*nbd.Export, error) {
	if c.lockName(name) != nil {
		return nil, nil
	}
	return c.runLocked(ctx, name, call)
}

// isLate reports whether the call of a name did not return in time.
func (c *fileCalls) isLate(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	call := c.names[name]
	return call != nil && call.late
}

func (c *fileCalls) markLate(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if call := c.names[name]; call != nil {
		call.late = true
	}
}

// lockName locks a name. If another call has it, lockName returns the channel of that call.
func (c *fileCalls) lockName(name string) (other <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if call := c.names[name]; call != nil {
		return call.done
	}
	c.names[name] = &fileCall{done: make(chan struct{})}
	return nil
}

func (c *fileCalls) unlockName(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.names[name].done)
	delete(c.names, name)
}

// runLocked runs a call whose name is locked.
func (c *fileCalls) runLocked(ctx context.Context, name string, call func() (*nbd.Export, error)) (*nbd.Export, error) {
	if err := c.slots.Acquire(ctx, 1); err != nil {
		c.unlockName(name)
		return nil, notAnswered(ctx)
	}
	type result struct {
		export *nbd.Export
		err    error
	}
	results := make(chan result)
	go func() {
		e, err := call()
		c.slots.Release(1)
		c.unlockName(name)
		select {
		case results <- result{e, err}:
		case <-ctx.Done():
			if e != nil && e.Release != nil {
				e.Release()
			}
		}
	}()
	select {
	case r := <-results:
		return r.export, r.err
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			c.markLate(name)
		}
		return nil, notAnswered(ctx)
	}
}

func notAnswered(ctx context.Context) error {
	return fmt.Errorf("waiting for the directory of indexes: %w", ctx.Err())
}
