package web

import (
	"context"
	"crypto/rand"
	"errors"
	"sync/atomic"

	"cairn/store"
)

// ErrNoAbsence reports that a server cannot prove absence: it answers requests for missing objects
// with success and an error page of any type.
var ErrNoAbsence = errors.New("the server answers 200 OK for a chunk that does not exist, so that it cannot tell which chunks it has")

// absence records whether a server reports missing objects as missing. The zero value means
// unknown.
type absence struct{ state atomic.Int32 }

const (
	absenceUnknown = iota
	absenceProbing // one caller's probe is running; other callers do not wait for it
	absenceReported
	absenceHidden
)

// checkAbsence returns ErrNoAbsence if the server reports that it has a chunk with a random digest,
// which cannot exist. It probes once, after the server's first report that a chunk exists.
func (b *Bucket) checkAbsence(ctx context.Context, name string) error {
	digest, packed, is := store.ChunkObject(name)
	switch {
	case !is:
		return nil
	case b.absence.state.Load() == absenceHidden:
		return addURL(ctx, b.objectURL(name), ErrNoAbsence)
	case !b.absence.state.CompareAndSwap(absenceUnknown, absenceProbing):
		return nil
	}
	_, _ = rand.Read(digest[:]) // never fails
	_, err := b.requestSize(ctx, store.ObjectName(digest, packed))
	switch {
	case err == nil || errors.Is(err, store.ErrNoSize):
		b.absence.state.Store(absenceHidden)
		return addURL(ctx, b.objectURL(name), ErrNoAbsence)
	case ctx.Err() != nil || errors.Is(err, store.ErrUnavailable): // the next report is checked
		b.absence.state.Store(absenceUnknown)
	default:
		b.absence.state.Store(absenceReported)
	}
	return nil
}
