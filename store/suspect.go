package store

import (
	"context"
	"errors"

	"cairn/blob"
)

// SuspectError comes with an answer whose header contradicts it, such as a chunk with the type of a web page: Read
// returns the whole body beside it, and Stat the size. A caller that can prove the bytes does so, and takes the
// error as the reason when the proof fails. For any other caller it is a plain failure. It is none of the errors
// that callers decide by, so that no wrapper asks again before the bytes are judged.
type SuspectError struct {
	Err error // why the answer is not the object, should it not be
}

func (e *SuspectError) Error() string { return e.Err.Error() }

// ErrNoSize says that an object is there, and that the store does not tell its size.
var ErrNoSize = errors.New("the server does not tell the size")

// confirmed is a SuspectError whose bytes were not the object: it is what its reason is.
type confirmed struct {
	error
	reason error
}

func (c confirmed) Unwrap() error { return c.reason }

// splitSuspicion parts the error of a Read. With a reason there are bytes to prove; the reason is the error to return
// if that fails.
func splitSuspicion(err error) (reason, failed error) {
	suspect, ok := errors.AsType[*SuspectError](err)
	if !ok {
		return nil, err
	}
	return confirmed{err, suspect.Err}, nil
}

// IsSuspect reports whether bytes or a size came with an error.
func IsSuspect(err error) bool {
	_, ok := errors.AsType[*SuspectError](err)
	return ok
}

// proves reports whether data is the chunk d by any of the algorithms: the store's is not always known.
func proves(d blob.Digest, data []byte) bool {
	return blob.SHA512_256.Sum(data) == d || blob.SHA256.Sum(data) == d
}

// proveObject returns the size of a chunk's object that is there only if its bytes say so: a web page in place of it is
// the error that its suspicion tells.
func proveObject(ctx context.Context, r Reader, d blob.Digest, packed bool) (stored int64, err error) {
	var raw Raw
	err = NewChunks(r, blob.SHA512_256).Load(ctx, d, packed, 0, &raw)
	_, corrupt := errors.AsType[*CorruptError](err)
	switch {
	case err != nil && !corrupt:
		return 0, err
	case raw.Suspicion != nil && !proves(d, raw.Plain):
		return 0, raw.Suspicion
	}
	return int64(len(raw.Stored)), nil
}
