package web

import (
	"context"
	"crypto/rand"
	"errors"
	"sync/atomic"

	"cairn/store"
)

// ErrNoAbsence says that a server cannot tell what it has: it answers for missing objects as for others, with an error
// page of any type and the status of success.
var ErrNoAbsence = errors.New("the server answers 200 OK for a chunk that does not exist, so that it cannot tell which chunks it has")

// absence is whether a server tells that an object is missing. The zero value is not known.
type absence struct{ state atomic.Int32 }

const (
	absenceUnknown = iota
	absenceProbed  // by one caller; the others do not wait for it
	absenceTold
	absenceHidden
)

// checkAbsence returns ErrNoAbsence if the server says that it has a chunk which nobody can have. It is asked once,
// after its first word that it has one.
func (b *Bucket) checkAbsence(ctx context.Context, name string) error {
	digest, packed, is := store.ChunkObject(name)
	switch {
	case !is:
		return nil
	case b.absence.state.Load() == absenceHidden:
		return named(ctx, b.url(name), ErrNoAbsence)
	case !b.absence.state.CompareAndSwap(absenceUnknown, absenceProbed):
		return nil
	}
	_, _ = rand.Read(digest[:]) // never fails
	_, err := b.head(ctx, store.ObjectName(digest, packed))
	switch {
	case err == nil || errors.Is(err, store.ErrNoSize):
		b.absence.state.Store(absenceHidden)
		return named(ctx, b.url(name), ErrNoAbsence)
	case ctx.Err() != nil || errors.Is(err, store.ErrUnavailable): // the next word is checked
		b.absence.state.Store(absenceUnknown)
	default:
		b.absence.state.Store(absenceTold)
	}
	return nil
}
