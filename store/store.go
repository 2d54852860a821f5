// Package store keeps chunks under their digests. It has two layers. A Bucket moves named bytes and
// knows nothing of digests; packages local, web, s3 and sftp implement it. Chunks and Writer give
// access to a bucket by digest: names, compression and verification are written once, here. Package
// supply combines several stores into one Getter. The package knows nothing of images, seeds or
// devices.
package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"strings"
	"time"

	"cairn/blob"
)

// Errors that callers decide by. Every other error is a plain failure.
var (
	// ErrNotFound is proof of absence: the store answered that it does not hold the object. A
	// denied, failed or unanswered request is never ErrNotFound.
	ErrNotFound = errors.New("not found")
	// ErrDenied reports that the store refused the request (permissions, credentials).
	ErrDenied = errors.New("access denied")
	// ErrUnavailable reports that the store could not be reached, or failed to answer, and may
	// answer later.
	ErrUnavailable = errors.New("store unavailable")
	// ErrTooLarge reports that an object is larger than the caller's limit.
	ErrTooLarge = errors.New("larger than allowed")
	// ErrExists reports that the name of an object to be created is taken.
	ErrExists = errors.New("exists already")
	// ErrRange reports that a range begins at or after the end of an object.
	ErrRange = errors.New("the range begins after the object's end")
)

// CorruptError reports that the bytes that were read are not those that the name stands for.
type CorruptError struct {
	Name string // the object and its store
	Err  error  // the defect
}

func (e *CorruptError) Error() string { return fmt.Sprintf("%s is corrupt: %v", e.Name, e.Err) }
func (e *CorruptError) Unwrap() error { return e.Err }

func isCorrupt(err error) bool {
	_, ok := errors.AsType[*CorruptError](err)
	return ok
}

// UnavailableError is an ErrUnavailable with its cause and the time that the store asks to wait.
type UnavailableError struct {
	Err       error
	After     time.Duration // wait that the store asks for before the next request; 0 is unspecified
	Throttled bool          // the store answered that it gets too many requests
	Received  int64         // bytes of the object received before the failure
}

func (e *UnavailableError) Error() string   { return fmt.Sprintf("%v: %v", ErrUnavailable, e.Err) }
func (e *UnavailableError) Unwrap() []error { return []error{ErrUnavailable, e.Err} }

// CheckName refuses a name that is not an object's: a slash-separated relative path in its one
// spelling, without empty, "." or ".." elements, in valid UTF-8. Every Reader and Bucket checks its
// names with it.
func CheckName(name string) error {
	if !fs.ValidPath(name) || name == "." || strings.ContainsRune(name, 0) {
		return fmt.Errorf("%q is not an object name (a clean relative path)", name)
	}
	return nil
}

// Reader reads named objects. Names are slash-separated relative paths. Safe for concurrent use.
type Reader interface {
	// Read appends the whole object to dst and returns the extended slice. An object of more than
	// limit bytes is ErrTooLarge, detected before it is read into memory. A short body is an error,
	// never a short result. With a *SuspectError, Read also returns the bytes.
	Read(ctx context.Context, name string, dst []byte, limit int64) ([]byte, error)
	// Stat returns the object's size in bytes. For an existing object the error may be ErrNoSize,
	// or a *SuspectError beside the size.
	Stat(ctx context.Context, name string) (int64, error)
	// String returns the location for messages, without credentials.
	String() string
}

// Streamer is a Reader that can pass on an object while it receives it.
type Streamer interface {
	// Stream calls use with a reader of the object from its first byte on, and returns the error of
	// use. The reader returns io.EOF only after the whole object; an object of more than limit
	// bytes is ErrTooLarge. A retry calls use again, with the object from its start.
	Stream(ctx context.Context, name string, limit int64, use func(io.Reader) error) error
}

// Stream calls r's own Stream, or reads the whole object into memory if r is not a Streamer.
func Stream(ctx context.Context, r Reader, name string, limit int64, use func(io.Reader) error) error {
	if own, ok := r.(Streamer); ok {
		return own.Stream(ctx, name, limit, use)
	}
	data, err := r.Read(ctx, name, nil, limit)
	suspicion, err := splitSuspicion(err)
	if err != nil {
		return err
	}
	err = use(bytes.NewReader(data))
	if err != nil && suspicion != nil {
		return suspicion
	}
	return err
}

// As returns r as a T, or else the first Reader below it that is one. A wrapper has a method
// Unwrap() Reader.
func As[T any](r Reader) (as T, ok bool) {
	for r != nil {
		if as, ok = r.(T); ok {
			return as, true
		}
		wrapper, wraps := r.(interface{ Unwrap() Reader })
		if !wraps {
			break
		}
		r = wrapper.Unwrap()
	}
	return as, false
}

// Close ends a process that r runs, such as ssh. It ignores errors: all data is written by then.
func Close(r Reader) {
	if c, ok := As[io.Closer](r); ok {
		_ = c.Close()
	}
}

// Bucket is a Reader that can be written.
type Bucket interface {
	Reader
	// Write stores an object and replaces one of the same name. When it returns nil, the object is
	// whole and durable. A failed or cancelled Write leaves the old object or none.
	Write(ctx context.Context, name string, data []byte) error
}

// Object is one entry of a listing.
type Object struct {
	Name string
	Size int64 // bytes
	// Modified is when the object was written last, by the clock of the store. It is the zero time if the
	// store does not tell.
	Modified time.Time
}

// Lister is a Reader that can list its objects.
type Lister interface {
	// List yields the objects whose names begin with prefix, which need not end at a slash; ""
	// lists all. Objects come in any order, each once, in memory that does not grow with their
	// number. An object that is written or removed during the listing may or may not be among them;
	// an unfinished write never is. An error, also that of ctx, is the last value yielded.
	List(ctx context.Context, prefix string) iter.Seq2[Object, error]
}

// Creator is a Bucket that can create an object without replacing one, even beside concurrent
// writers.
type Creator interface {
	// Create is Write for a new name. If the name is taken it returns ErrExists and changes
	// nothing.
	Create(ctx context.Context, name string, data []byte) error
}

// CreateChecker is a Creator whose service may not support Create.
type CreateChecker interface {
	// CheckCreate returns errors.ErrUnsupported when Create would do so for every name. It leaves
	// no object. A nil result proves nothing, since not every service can be checked.
	CheckCreate(ctx context.Context) error
}

// Remover is a Bucket that can remove objects.
type Remover interface {
	// Remove removes an object, durably when it returns nil. An absent object is ErrNotFound.
	Remove(ctx context.Context, name string) error
}

// Sweeper is a Remover with a cheaper way to remove many objects.
type Sweeper interface {
	// Sweep removes objects, at most 1000. An absent one is no error. Objects that are removed may come back
	// after a power cut.
	Sweep(ctx context.Context, names []string) error
}

// MaxSweep is the number of objects that a Sweep may remove.
const MaxSweep = 1000

// Sweep calls b's own Sweep, or removes the objects one after the other.
func Sweep(ctx context.Context, b Remover, names []string) error {
	if own, ok := b.(Sweeper); ok {
		return own.Sweep(ctx, names)
	}
	for _, name := range names {
		if err := b.Remove(ctx, name); err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	return ctx.Err()
}

// Batch writes many objects that become durable, then visible, together at Commit. Safe for
// concurrent use.
type Batch interface {
	// Write adds an object. It may not be readable under its name before Commit; data may be reused
	// when Write returns.
	Write(ctx context.Context, name string, data []byte) error
	// Commit makes all objects added so far durable and visible. More may be written afterwards. A
	// failed or cancelled Commit may be called again; until then some objects may be visible, each
	// of them whole. Every later Commit fails too when the medium may have lost objects.
	Commit(ctx context.Context) error
	// Close discards every object that neither Commit nor Write made visible, and leaves no trace
	// of it.
	Close() error
}

// Batcher is a Bucket with a cheaper way to write many objects than one Write each.
type Batcher interface {
	NewBatch() (Batch, error)
}

// NewBatch starts a batch on b: b's own, or one that writes each object at once.
func NewBatch(b Bucket) (Batch, error) {
	if own, ok := b.(Batcher); ok {
		return own.NewBatch()
	}
	return immediate{b}, nil
}

// immediate is the batch of a bucket whose every Write is durable.
type immediate struct{ b Bucket }

func (i immediate) Write(ctx context.Context, name string, data []byte) error {
	return i.b.Write(ctx, name, data)
}
func (i immediate) Commit(ctx context.Context) error { return ctx.Err() }
func (i immediate) Close() error                     { return nil }

// Putter stores chunks. Safe for concurrent use.
type Putter interface {
	// Put stores data, whose digest the caller knows to be d, and returns its stored size in bytes.
	// The chunk need not be durable or readable yet; data may be reused when Put returns.
	Put(ctx context.Context, d blob.Digest, data []byte) (stored int64, err error)
}
