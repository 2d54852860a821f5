package supply

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"cairn/store"
)

// retrying repeats the wants that a store was unavailable for, as its policy says. Requests that are under way when
// patience ends are given up: chunks are small.
type retrying struct {
	from   store.Getter
	policy store.Policy
}

// Get implements store.Getter.
func (r retrying) Get(ctx context.Context, wants []store.Want, done func(i int, err error)) {
	left := numbers(len(wants)) // of the wants without a final outcome
	failed := make([]error, len(wants))
	err := r.policy.DoUntil(ctx, func(end time.Time) error {
		attempt, cancel := ctx, context.CancelFunc(func() {})
		if !end.IsZero() {
			attempt, cancel = context.WithDeadline(ctx, end)
		}
		defer cancel()
		left = getSome(attempt, r.from, wants, left, func(i int, err error) (again bool) {
			switch {
			case err != nil && attempt.Err() != nil && ctx.Err() == nil: // what failed before tells more
				return true
			case errors.Is(err, store.ErrUnavailable):
				failed[i] = err
				return true
			}
			done(i, err)
			return false
		})
		if len(left) == 0 {
			return nil
		}
		return failed[left[0]]
	})
	for _, i := range left {
		if ctx.Err() != nil || failed[i] == nil {
			done(i, err)
		} else {
			done(i, failed[i])
		}
	}
}

// numbers returns the numbers from 0 to n-1.
func numbers(n int) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = i
	}
	return list
}

// getSome gets the wants with these numbers, and returns the numbers of those for which done reports true.
func getSome(ctx context.Context, from store.Getter, wants []store.Want, which []int, done func(i int, err error) bool) []int {
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
