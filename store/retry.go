package store

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"time"

	"cairn/blob"
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
	// longestAsked is how long a store may ask to be left alone (HTTP's Retry-After) and be obeyed.
	longestAsked = time.Minute
	// mostAsked is how often such a wait is not counted as patience: the store is there, and busy.
	mostAsked = 8
)

// Do calls ask until its answer is not ErrUnavailable, or patience ends; when that is an UnavailableError, not
// before the store wants it. Any other error is final. Waits end with the context.
func (p Policy) Do(ctx context.Context, ask func() error) error {
	return p.until(ctx, func(time.Time) error { return ask() })
}

// until is Do that tells ask when patience ends; zero says that it has not begun.
func (p Policy) until(ctx context.Context, ask func(end time.Time) error) error {
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
		slept, err := sleep(ctx, wait)
		if err != nil {
			return err
		}
		end = end.Add(stopped(slept - wait))
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
	wait = jitter(p.backoff(n))
	busy, ok := errors.AsType[*UnavailableError](err)
	if !ok || busy.After <= 0 {
		return wait, false
	}
	return max(wait, min(busy.After, longestAsked)), true
}

// Retry reads from r as the policy says. It is an io.Closer, which closes r if that is one.
func Retry(r Reader, p Policy) Reader { return retry{r, p} }

type retry struct {
	r Reader
	p Policy
}

func (t retry) String() string { return t.r.String() }

// Close closes r if it can be closed.
func (t retry) Close() error {
	if c, ok := t.r.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

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

// RetryGets gets from g as the policy says. What is under way when patience ends is given up: chunks are small.
func RetryGets(g Getter, p Policy) Getter { return retryGets{g, p} }

type retryGets struct {
	g Getter
	p Policy
}

func (t retryGets) Get(ctx context.Context, d blob.Digest, dst []byte) error {
	var failed error
	return t.p.until(ctx, func(end time.Time) error {
		attempt, cancel := ctx, context.CancelFunc(func() {})
		if failed != nil {
			attempt, cancel = context.WithDeadline(ctx, end)
		}
		defer cancel()
		err := t.g.Get(attempt, d, dst)
		if err != nil && attempt.Err() != nil && ctx.Err() == nil {
			return failed
		}
		failed = err
		return err
	})
}

// RetryBucket reads from b and writes to it as the policy says. It lists and creates if b does, and removes if b
// does all three. It is an io.Closer, which closes b if that is one.
func RetryBucket(b Bucket, p Policy) Bucket {
	t := retryBucket{retry{b, p}, b}
	lister, lists := b.(Lister)
	creator, creates := b.(Creator)
	remover, removes := b.(Remover)
	switch {
	case lists && creates && removes:
		return struct {
			retryBucket
			Lister
			retryCreator
			Remover
		}{t, lister, retryCreator{t, creator}, remover}
	case lists && creates:
		return struct {
			retryBucket
			Lister
			retryCreator
		}{t, lister, retryCreator{t, creator}}
	case lists:
		return struct {
			retryBucket
			Lister
		}{t, lister}
	case creates:
		return struct {
			retryBucket
			retryCreator
		}{t, retryCreator{t, creator}}
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

// retryCreator is the Creator of a retryBucket, which is a field so that its methods are not there twice.
type retryCreator struct {
	bucket  retryBucket
	creator Creator
}

// Create implements Creator. An attempt whose answer was lost may have done its work: then the object is
// there, with these bytes, and that is success.
func (t retryCreator) Create(ctx context.Context, name string, data []byte) error {
	attempts := 0
	err := t.bucket.p.Do(ctx, func() error {
		attempts++
		return t.creator.Create(ctx, name, data)
	})
	if attempts == 1 || !errors.Is(err, ErrExists) {
		return err
	}
	there, readErr := t.bucket.Read(ctx, name, nil, int64(len(data)))
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
	return t.bucket.p.Do(ctx, func() error { return checker.CheckCreate(ctx) })
}

// backoff is the longest wait after the n-th attempt, counted from 1.
func (p Policy) backoff(n int) time.Duration {
	wait, most := cmp.Or(p.First, 250*time.Millisecond), cmp.Or(p.Max, 10*time.Second)
	for ; n > 1 && wait < most; n-- {
		wait *= 2
	}
	return min(wait, most)
}

// jitter spreads what many devices do at the same moment.
func jitter(wait time.Duration) time.Duration { return wait - rand.N(wait/2+1) }

// sleep waits, and returns for how long it did.
func sleep(ctx context.Context, wait time.Duration) (time.Duration, error) {
	began := time.Now()
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return time.Since(began), nil
	case <-ctx.Done():
		return time.Since(began), ctx.Err()
	}
}
