package supply

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"cairn/store"
)

// retrier retries each want for which a store was unavailable, by itself and as the policy says.
// It cancels an attempt that is under way when patience ends; chunks are small.
type retrier struct {
	from   store.Getter
	policy store.Policy
}

// Get implements store.Getter.
func (r retrier) Get(ctx context.Context, wants []store.Want, done func(i int, err error)) {
	var repeated sync.WaitGroup
	r.from.Get(ctx, wants, func(i int, err error) {
		if errors.Is(err, store.ErrUnavailable) {
			repeated.Go(func() { done(i, r.retryWant(ctx, wants[i], err)) })
			return
		}
		done(i, err)
	})
	repeated.Wait()
}

// retryWant gets a chunk after a first attempt that returned the error failed.
func (r retrier) retryWant(ctx context.Context, w store.Want, failed error) error {
	return r.policy.DoUntil(ctx, func(end time.Time) error {
		if end.IsZero() { // the first attempt, which has failed already
			return failed
		}
		attempt, cancel := context.WithDeadline(ctx, end)
		defer cancel()
		err := store.GetOne(attempt, r.from, w.Digest, w.Dst)
		if err != nil && attempt.Err() != nil && ctx.Err() == nil {
			return failed // it says more than the deadline
		}
		failed = err
		return err
	})
}

// allIndexes returns the numbers from 0 to n-1.
func allIndexes(n int) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = i
	}
	return list
}

// getIndexed gets the wants with these indexes. It returns the indexes for which done returned
// true, in order.
func getIndexed(ctx context.Context, from store.Getter, wants []store.Want, which []int, done func(i int, err error) bool) []int {
	some := make([]store.Want, len(which))
	for n, i := range which {
		some[n] = wants[i]
	}
	var mu sync.Mutex // guards kept
	var kept []int
	from.Get(ctx, some, func(n int, err error) {
		if done(which[n], err) {
			mu.Lock()
			defer mu.Unlock()
			kept = append(kept, which[n])
		}
	})
	slices.Sort(kept)
	return kept
}
