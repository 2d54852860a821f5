package store

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// Policy says how long to be patient with a store that is unavailable. Waits double from First to Max, less
// a random part of up to a half. The zero value waits about half a minute in all.
type Policy struct {
	Attempts int           // in all; 0 is 8
	First    time.Duration // wait after the first attempt; 0 is 250 ms
	Max      time.Duration // longest wait; 0 is 10 s
}

// longestAsked is how long a store may ask to be left alone (HTTP's Retry-After) and be obeyed.
const longestAsked = time.Minute

// Retry reads from r, and asks again when the answer is ErrUnavailable; when that is an UnavailableError, not
// before the store wants it. Any other error is final. Waits end with the context.
func Retry(r Reader, p Policy) Reader {
	if p.Attempts == 0 {
		p.Attempts = 8
	}
	if p.First == 0 {
		p.First = 250 * time.Millisecond
	}
	if p.Max == 0 {
		p.Max = 10 * time.Second
	}
	return retry{r, p}
}

type retry struct {
	r Reader
	p Policy
}

func (t retry) String() string { return t.r.String() }

func (t retry) Read(ctx context.Context, name string, dst []byte, limit int64) (out []byte, err error) {
	err = t.p.do(ctx, func() error {
		out, err = t.r.Read(ctx, name, dst, limit)
		return err
	})
	return out, err
}

func (t retry) Stat(ctx context.Context, name string) (size int64, err error) {
	err = t.p.do(ctx, func() error {
		size, err = t.r.Stat(ctx, name)
		return err
	})
	return size, err
}

func (p Policy) do(ctx context.Context, ask func() error) error {
	for n := 1; ; n++ {
		err := ask()
		if n >= p.Attempts || !errors.Is(err, ErrUnavailable) {
			return err
		}
		wait := jitter(p.backoff(n))
		if busy, ok := errors.AsType[*UnavailableError](err); ok {
			wait = max(wait, min(busy.After, longestAsked))
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// backoff is the longest wait after the n-th attempt, counted from 1.
func (p Policy) backoff(n int) time.Duration {
	wait := p.First
	for ; n > 1 && wait < p.Max; n-- {
		wait *= 2
	}
	return min(wait, p.Max)
}

// jitter spreads what many devices do at the same moment.
func jitter(wait time.Duration) time.Duration { return wait - rand.N(wait/2+1) }

func sleep(ctx context.Context, wait time.Duration) error {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
