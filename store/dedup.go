package store

import (
	"bytes"
	"context"
	"errors"
	"sync"

	"cairn/blob"
)

// Dedup gets from g, and lets those who ask for a chunk that is being fetched wait for that fetch instead of
// starting another. Its outcome, error or not, is everyone's, and is not remembered. Whoever is cancelled
// leaves alone; when it is the one whose call fetches, one of the others fetches anew.
func Dedup(g Getter) Getter { return &dedup{g: g, flights: map[flightKey]*flight{}} }

type dedup struct {
	g  Getter
	mu sync.Mutex // guards flights, and waiters of each
	// flights are the fetches under way.
	flights map[flightKey]*flight
}

// flightKey has the size too: callers may disagree about it, and one of them is wrong.
type flightKey struct {
	digest blob.Digest
	size   int
}

type flight struct {
	key     flightKey
	waiters int
	done    chan struct{} // closed when data and err are final
	data    []byte        // for the waiters; nil when there are none
	err     error
}

// errAbandoned ends a flight whose caller was cancelled; the waiters start another.
var errAbandoned = errors.New("fetch abandoned")

func (u *dedup) Get(ctx context.Context, d blob.Digest, dst []byte) error {
	for {
		f, mine := u.board(flightKey{d, len(dst)})
		if mine {
			return u.fetch(ctx, f, dst)
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		if !errors.Is(f.err, errAbandoned) {
			copy(dst, f.data)
			return f.err
		}
	}
}

// board is the flight for key, and whether the caller has to fly it.
func (u *dedup) board(key flightKey) (f *flight, mine bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if f := u.flights[key]; f != nil {
		f.waiters++
		return f, false
	}
	f = &flight{key: key, done: make(chan struct{})}
	u.flights[key] = f
	return f, true
}

func (u *dedup) fetch(ctx context.Context, f *flight, dst []byte) (err error) {
	err = errAbandoned // what the waiters see if g panics
	defer func() { u.land(ctx, f, dst, err) }()
	err = u.g.Get(ctx, f.key.digest, dst)
	return err
}

// land takes the flight off the board, so that nobody joins it any more, and hands out what it brought.
func (u *dedup) land(ctx context.Context, f *flight, dst []byte, err error) {
	u.mu.Lock()
	delete(u.flights, f.key)
	waiters := f.waiters
	u.mu.Unlock()
	if err == nil && waiters > 0 {
		f.data = bytes.Clone(dst) // dst is the caller's again when Get returns
	}
	f.err = err
	if err != nil && ctx.Err() != nil {
		f.err = errAbandoned
	}
	close(f.done)
}
