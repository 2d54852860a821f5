package store

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"time"
)

// Policy limits the retries of calls to an unavailable store. Waits double from First to Max, less
// a random part of up to a half. The zero value suits an interactive job.
type Policy struct {
	Patience time.Duration // limits the retries of a call from its first failure on; 0: a minute, < 0: no limit
	First    time.Duration // wait after the first attempt; 0 is 250 ms
	Max      time.Duration // longest wait; 0 is 10 s
	// Waiting is called before each wait, with the failure. May be nil.
	Waiting func(failed error, wait time.Duration)
	// Pauses measures stops of the process during retries, which do not count against Patience. If it is nil, each
	// call measures by itself.
	Pauses *Pauses
}

const (
	// LongestAsked limits a wait that a store asks for (HTTP's Retry-After).
	LongestAsked = time.Minute
	// maxAskedWaits is the number of these waits that do not count against Patience, since the
	// store is reachable but busy.
	maxAskedWaits = 8
)

// Backoff is a wait that doubles from First to Max.
type Backoff struct{ First, Max time.Duration }

// Longest returns the wait after the n-th attempt, counted from 1.
func (b Backoff) Longest(n int) time.Duration {
	wait := b.First
	for ; n > 1 && wait < b.Max; n-- {
		wait *= 2
	}
	return min(wait, b.Max)
}

// Wait returns Longest less a random part of up to a half, which spreads the simultaneous retries
// of many devices.
func (b Backoff) Wait(n int) time.Duration {
	wait := b.Longest(n)
	return wait - rand.N(wait/2+1)
}

type failuresKey struct{}

// WithFailures returns a context in which calls report each failed attempt, also one whose repetition succeeds.
func WithFailures(ctx context.Context, report func(error)) context.Context {
	return context.WithValue(ctx, failuresKey{}, report)
}

func reportFailure(ctx context.Context, err error) {
	if report, is := ctx.Value(failuresKey{}).(func(error)); is {
		report(err)
	}
}

// Do calls ask until its error is not ErrUnavailable or patience ends. After an UnavailableError it
// waits at least as long as the store asks, up to LongestAsked. Any other error is final. The end
// of the context ends a wait.
func (p Policy) Do(ctx context.Context, ask func() error) error {
	return p.DoUntil(ctx, func(time.Time) error { return ask() })
}

// DoUntil is Do, but passes to ask the time when patience ends. The time is zero before the first
// failure.
func (p Policy) DoUntil(ctx context.Context, ask func(end time.Time) error) error {
	var end time.Time  // of patience
	var pauses *Pauses // nil before the first failure
	for n := 1; ; n++ {
		watch := pauses.Watch()
		err := ask(end)
		stopped := watch.stoppedTime()
		watch.End()
		if !errors.Is(err, ErrUnavailable) {
			return err
		}
		reportFailure(ctx, err)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if n == 1 {
			end, pauses = p.deadline(time.Now()), cmp.Or(p.Pauses, new(Pauses))
		}
		end = end.Add(stopped)
		wait, asked := p.nextWait(n, err)
		if asked && n <= maxAskedWaits {
			end = end.Add(wait)
		}
		left := time.Until(end)
		if left <= 0 || asked && left < wait {
			return err
		}
		wait = min(wait, left)
		if p.Waiting != nil {
			p.Waiting(err, wait)
		}
		began := time.Now()
		if err := Sleep(ctx, wait); err != nil {
			return err
		}
		end = end.Add(lateTime(time.Since(began) - wait))
	}
}

// lateTime returns the time for which the process was stopped (SIGSTOP, a paused virtual
// machine) during a sleep that ended late. It does not count against Patience. A busy machine also
// wakes sleepers late, but by less than a second.
func lateTime(late time.Duration) time.Duration {
	if late < time.Second {
		return 0
	}
	return late
}

// deadline returns the end of a patience that begins now.
func (p Policy) deadline(now time.Time) time.Time {
	const forEver = 100 * 365 * 24 * time.Hour
	switch {
	case p.Patience == 0:
		return now.Add(time.Minute)
	case p.Patience < 0:
		return now.Add(forEver)
	}
	return now.Add(p.Patience)
}

// nextWait returns the wait after the n-th attempt, and reports whether the store asked for it.
func (p Policy) nextWait(n int, err error) (wait time.Duration, asked bool) {
	wait = Backoff{cmp.Or(p.First, 250*time.Millisecond), cmp.Or(p.Max, 10*time.Second)}.Wait(n)
	busy, ok := errors.AsType[*UnavailableError](err)
	if !ok || busy.After <= 0 {
		return wait, false
	}
	return max(wait, min(busy.After, LongestAsked)), true
}

// Retry returns a Reader that reads from r and retries as the policy says.
func Retry(r Reader, p Policy) Reader { return retry{r, p} }

type retry struct {
	r Reader
	p Policy
}

func (t retry) String() string { return t.r.String() }

// Unwrap is used by As.
func (t retry) Unwrap() Reader { return t.r }

func (t retry) Read(ctx context.Context, name string, dst []byte, limit int64) (out []byte, err error) {
	err = t.p.Do(ctx, func() error {
		out, err = t.r.Read(ctx, name, dst, limit)
		return err
	})
	return out, err
}

// Stream implements Streamer.
func (t retry) Stream(ctx context.Context, name string, limit int64, use func(io.Reader) error) error {
	return t.p.Do(ctx, func() error { return Stream(ctx, t.r, name, limit, use) })
}

// StreamRange implements RangeStreamer.
func (t retry) StreamRange(ctx context.Context, name string, off, n int64, use func(Part, io.Reader) error) error {
	return t.p.Do(ctx, func() error { return StreamRange(ctx, t.r, name, off, n, use) })
}

func (t retry) Stat(ctx context.Context, name string) (size int64, err error) {
	err = t.p.Do(ctx, func() error {
		size, err = t.r.Stat(ctx, name)
		return err
	})
	return size, err
}

// RetryBucket returns a Bucket that reads from and writes to b and retries as the policy says. It
// is a Creator or a Remover if b is one.
func RetryBucket(b Bucket, p Policy) Bucket {
	t := retryBucket{retry{b, p}, b}
	creator, creates := b.(Creator)
	remover, removes := b.(Remover)
	switch {
	case creates && removes:
		return struct {
			retryCreator
			retryRemover
		}{retryCreator{t, creator}, retryRemover{p, remover}}
	case creates:
		return retryCreator{t, creator}
	case removes:
		return struct {
			retryBucket
			retryRemover
		}{t, retryRemover{p, remover}}
	}
	return t
}

type retryBucket struct {
	retry
	b Bucket
}

// WithoutRetries returns the bucket to which a RetryBucket sends its requests, or b itself.
func WithoutRetries(b Bucket) Bucket {
	if t, retries := b.(interface{ withoutRetries() Bucket }); retries {
		return t.withoutRetries()
	}
	return b
}

func (t retryBucket) withoutRetries() Bucket { return t.b }

func (t retryBucket) Write(ctx context.Context, name string, data []byte) error {
	return t.p.Do(ctx, func() error { return t.b.Write(ctx, name, data) })
}

// retryCreator is a retryBucket that is a Creator.
type retryCreator struct {
	retryBucket
	creator Creator
}

// Create implements Creator. An attempt whose answer was lost may have created the object. Then a
// retry finds an object with these bytes, which counts as success.
func (t retryCreator) Create(ctx context.Context, name string, data []byte) error {
	attempts := 0
	err := t.p.Do(ctx, func() error {
		attempts++
		return t.creator.Create(ctx, name, data)
	})
	if attempts == 1 || !errors.Is(err, ErrExists) {
		return err
	}
	there, readErr := t.Read(ctx, name, nil, int64(len(data)))
	if readErr == nil && bytes.Equal(there, data) {
		return nil
	}
	return err
}

// CheckCreate implements CreateChecker, if the creator does.
func (t retryCreator) CheckCreate(ctx context.Context) error {
	checker, can := t.creator.(CreateChecker)
	if !can {
		return nil
	}
	return t.p.Do(ctx, func() error { return checker.CheckCreate(ctx) })
}

// retryRemover is the Remover of a retryBucket.
type retryRemover struct {
	policy  Policy
	remover Remover
}

// Remove implements Remover. An attempt whose answer was lost may have removed the object. Then a retry does not find
// it, which counts as success.
func (t retryRemover) Remove(ctx context.Context, name string) error {
	attempts := 0
	err := t.policy.Do(ctx, func() error {
		attempts++
		return t.remover.Remove(ctx, name)
	})
	if attempts > 1 && errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// Sweep implements Sweeper.
func (t retryRemover) Sweep(ctx context.Context, names []string) error {
	return t.policy.Do(ctx, func() error { return Sweep(ctx, t.remover, names) })
}

// Sleep waits, or returns the error of ctx if ctx ends first.
func Sleep(ctx context.Context, wait time.Duration) error {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
