package store

import (
	"context"
	"errors"

	"cairn/blob"
)

// SuspectError comes with an answer whose header contradicts it, such as a chunk with the content
// type of a web page. Read returns the whole body beside it, and Stat the size. A caller that can
// verify the bytes does so, and reports the error if they are wrong. For any other caller it is a
// plain failure. It matches none of the errors that callers decide by, so that no wrapper retries
// before the bytes are verified.
type SuspectError struct {
	Err error // why the answer is not the object, if the bytes prove wrong
}

func (e *SuspectError) Error() string { return e.Err.Error() }

// ErrNoSize reports that an object exists but the store does not report its size.
var ErrNoSize = errors.New("the server does not report the size")

// confirmedSuspicion is a SuspectError whose bytes were wrong. It unwraps to the reason.
type confirmedSuspicion struct {
	error
	reason error
}

func (c confirmedSuspicion) Unwrap() error { return c.reason }

// splitSuspicion splits the error of a Read. If reason is not nil, the read returned bytes to
// verify, and reason is the error to return if they are wrong.
func splitSuspicion(err error) (reason, failed error) {
	suspect, ok := errors.AsType[*SuspectError](err)
	if !ok {
		return nil, err
	}
	return confirmedSuspicion{err, suspect.Err}, nil
}

// IsSuspect reports whether err came with bytes or a size.
func IsSuspect(err error) bool {
	_, ok := errors.AsType[*SuspectError](err)
	return ok
}

// isChunk reports whether data is the chunk d by any of the algorithms, since the store's algorithm
// is not always known.
func isChunk(d blob.Digest, data []byte) bool {
	return blob.SHA512_256.Sum(data) == d || blob.SHA256.Sum(data) == d
}

// verifyObject returns the size of a chunk's object whose answer is suspect. It reads the object;
// if the bytes are not the chunk, such as a login page, it returns the reason of the suspicion.
func verifyObject(ctx context.Context, r Reader, d blob.Digest, packed bool) (stored int64, err error) {
	var raw Raw
	err = NewChunks(r, blob.SHA512_256).Load(ctx, d, packed, 0, &raw)
	_, corrupt := errors.AsType[*CorruptError](err)
	switch {
	case err != nil && !corrupt:
		return 0, err
	case raw.Suspicion != nil && !isChunk(d, raw.Plain):
		return 0, raw.Suspicion
	}
	return int64(len(raw.Stored)), nil
}
