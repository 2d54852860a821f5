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

// Policy says how long to be patient with a store that is unavailable. Waits double from First to Max, less
// a random part of up to a half. The zero value is good for a job that somebody waits for.
type Policy struct {
	Patience time.Duration // how long a call goes on after its first failure; 0 is a minute, less than 0 for ever
	First    time.Duration // wait after the first attempt; 0 is 250 ms
	Max      time.Duration // longest wait; 0 is 10 s
	// Waiting is called before each wait, with what failed. May be nil.
	Waiting func(failed error, wait time.Duration)
}

const (
	// LongestAsked is how long a wait that a store asks for (HTTP's Retry-After) is observed.
	LongestAsked = time.Minute
	// mostAsked is how often such a wait is not counted as patience: the store is there, and busy.
	mostAsked = 8
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

// Wait is Longest less a random part of up to a half: it spreads what many devices do at the same moment.
func (b Backoff) Wait(n int) time.Duration {
	wait := b.Longest(n)
	return wait - rand.N(wait/2+1)
}

// Do calls ask until its answer is not ErrUnavailable, or patience ends; when that is an UnavailableError, not
// before the store wants it. Any other error is final. Waits end with the context.
func (p Policy) Do(ctx context.Context, ask func() error) error {
	return p.DoUntil(ctx, func(time.Time) error { return ask() })
}

// DoUntil is Do that tells ask when patience ends. The time is zero before the first failure.
func (p Policy) DoUntil(ctx context.Context, ask func(end time.Time) error) error {
	var end time.Time // of patience
	for n := 1; ; n++ {
		err := ask(end)
		if !errors.Is(err, ErrUnavailable) {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if n == 1 {
			end = p.end(time.Now())
		}
		wait, asked := p.wait(n, err)
		if asked && n <= mostAsked {
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
		end = end.Add(stopped(time.Since(began) - wait))
	}
}

// stopped returns for how long the process was stopped (SIGSTOP, a paused virtual machine), given by how much longer than
// asked it slept. Patience does not count that time. A busy machine wakes sleepers late too, but not by a second.
func stopped(late time.Duration) time.Duration {
	if late < time.Second {
		return 0
	}
	return late
}

// end is when patience ends that begins now.
func (p Policy) end(now time.Time) time.Time {
	const forEver = 100 * 365 * 24 * time.Hour
	switch {
	case p.Patience == 0:
		return now.Add(time.Minute)
	case p.Patience < 0:
		return now.Add(forEver)
	}
	return now.Add(p.Patience)
}

// wait is how long to wait after the n-th attempt, and whether the store asked for that.
func (p Policy) wait(n int, err error) (wait time.Duration, asked bool) {
	wait = Backoff{cmp.Or(p.First, 250*time.Millisecond), cmp.Or(p.Max, 10*time.Second)}.Wait(n)
	busy, ok := errors.AsType[*UnavailableError](err)
	if !ok || busy.After <= 0 {
		return wait, false
	}
	return max(wait, min(busy.After, LongestAsked)), true
}

// Retry reads from r as the policy says.
func Retry(r Reader, p Policy) Reader { return retry{r, p} }

type retry struct {
	r Reader
	p Policy
}

func (t retry) String() string { return t.r.String() }

// Unwrap is for As.
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

func (t retry) Stat(ctx context.Context, name string) (size int64, err error) {
	err = t.p.Do(ctx, func() error {
		size, err = t.r.Stat(ctx, name)
		return err
	})
	return size, err
}

// RetryBucket reads from b and writes to it as the policy says. It is a Creator if b is one.
func RetryBucket(b Bucket, p Policy) Bucket {
	t := retryBucket{retry{b, p}, b}
	if creator, can := b.(Creator); can {
		return retryCreator{t, creator}
	}
	return t
}

type retryBucket struct {
	retry
	b Bucket
}

func (t retryBucket) Write(ctx context.Context, name string, data []byte) error {
	return t.p.Do(ctx, func() error { return t.b.Write(ctx, name, data) })
}

// retryCreator is a retryBucket that is a Creator.
type retryCreator struct {
	retryBucket
	creator Creator
}

// Create implements Creator. An attempt whose answer was lost may have done its work: then the object is
// there, with these bytes, and that is success.
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

// Sleep waits, or returns the error of ctx when that ends before.
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
