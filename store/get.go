package store

import (
	"context"
	"sync"
	"sync/atomic"

	"cairn/blob"
)

// Want is a wanted chunk and the memory for it. The chunk's size is len(Dst).
type Want struct {
	Digest blob.Digest
	Dst    []byte
}

// Getter gets chunks by digest. Safe for concurrent use.
type Getter interface {
	// Get fetches the wants in any order. It calls done once for each, with its index and outcome,
	// from several goroutines at once, and returns after the last call. After a nil outcome the
	// digest of Dst is Digest; after an error the content of Dst is undefined. Absence is
	// ErrNotFound, wrong bytes are a *CorruptError. A want that was not requested before ctx ended
	// has the error of ctx.
	Get(ctx context.Context, wants []Want, done func(i int, err error))
}

// GetOne fills dst with the chunk d, whose size is len(dst).
func GetOne(ctx context.Context, g Getter, d blob.Digest, dst []byte) (err error) {
	g.Get(ctx, []Want{{d, dst}}, func(_ int, outcome error) { err = outcome })
	return err
}

// GetAll fetches all wants. It calls arrived, which may be nil, with the index of each fetched
// want, from several goroutines at once. It returns the first failure, which cancels the requests
// under way.
func GetAll(ctx context.Context, g Getter, wants []Want, arrived func(i int)) (failed error) {
	attempt, cancel := context.WithCancel(ctx)
	defer cancel()
	var once sync.Once
	g.Get(attempt, wants, func(i int, err error) {
		if err != nil {
			once.Do(func() { failed = err })
			cancel()
		} else if arrived != nil {
			arrived(i)
		}
	})
	if failed != nil {
		return failed
	}
	return ctx.Err()
}

// Each calls do for the numbers from 0 to n-1, at most atOnce of them at a time, and returns when
// all calls have returned. Each goroutine makes several calls in turn, since every new goroutine
// has to grow its stack.
func Each(n, atOnce int, do func(i int)) {
	if n == 1 {
		do(0)
		return
	}
	var group sync.WaitGroup
	var next atomic.Int64
	for range min(n, atOnce) {
		group.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				do(int(i - 1))
			}
		})
	}
	group.Wait()
}
