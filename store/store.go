// Package store keeps chunks under their digests. It has two floors: a Bucket moves named bytes and knows
// nothing of digests (local, web, s3 and sftp are buckets); Chunks is a bucket seen through digests, where
// names, compression and verification are written once. Package supply makes one Getter of several stores. The
// package knows nothing of images, seeds or devices.
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

// What a caller decides by. Everything else is a plain failure.
var (
	// ErrNotFound is proof of absence: the store answered and does not have it. A denied, failed or
	// unanswered request is never ErrNotFound.
	ErrNotFound = errors.New("not found")
	// ErrDenied says that the store refused the request (permissions, credentials).
	ErrDenied = errors.New("access denied")
	// ErrUnavailable says that the store could not be asked, or failed to answer, and may answer later.
	ErrUnavailable = errors.New("store unavailable")
	// ErrTooLarge says that an object is larger than the caller's limit.
	ErrTooLarge = errors.New("larger than allowed")
	// ErrExists says that a name that was to be new is taken.
	ErrExists = errors.New("exists already")
)

// CorruptError says that bytes were read and are not what they are named for.
type CorruptError struct {
	Name string // the object, with the store it came from
	Err  error  // what is wrong with it
}

func (e *CorruptError) Error() string { return fmt.Sprintf("%s is corrupt: %v", e.Name, e.Err) }
func (e *CorruptError) Unwrap() error { return e.Err }

func isCorrupt(err error) bool {
	_, ok := errors.AsType[*CorruptError](err)
	return ok
}

// UnavailableError is an ErrUnavailable with its cause, and with the store's own word on when to ask again.
type UnavailableError struct {
	Err       error
	After     time.Duration // how long the store wants to be left alone; 0 when it did not say
	Throttled bool          // the store is there, and is asked too much
	Received  int64         // bytes of an object that came before, in vain
}

func (e *UnavailableError) Error() string   { return fmt.Sprintf("%v: %v", ErrUnavailable, e.Err) }
func (e *UnavailableError) Unwrap() []error { return []error{ErrUnavailable, e.Err} }

// CheckName refuses what is not an object's name: a slash-separated relative path in its one spelling, with
// no empty, "." or ".." element, valid UTF-8. Every Reader and Bucket checks the names it is given.
func CheckName(name string) error {
	if !fs.ValidPath(name) || name == "." || strings.ContainsRune(name, 0) {
		return fmt.Errorf("%q is not an object name (a clean relative path)", name)
	}
	return nil
}

// Reader reads named objects. Names are slash-separated relative paths. Safe for concurrent use.
type Reader interface {
	// Read appends the whole object to dst and returns the extended slice. An object of more than limit
	// bytes is ErrTooLarge, found before it is read into memory; a short body is an error, never a short
	// result. A *SuspectError comes with the bytes.
	Read(ctx context.Context, name string, dst []byte, limit int64) ([]byte, error)
	// Stat is the object's size in bytes. Of an object that is there it may be ErrNoSize, or a *SuspectError with the
	// size.
	Stat(ctx context.Context, name string) (int64, error)
	// String is the location, for messages; it holds no credentials.
	String() string
}

// Streamer is a Reader that hands an object over while it comes.
type Streamer interface {
	// Stream has use read an object from its first byte on, and returns what use does. io.EOF comes only when the whole
	// object did; an object of more than limit bytes is ErrTooLarge. Where requests are repeated use is called again,
	// for the object from its start.
	Stream(ctx context.Context, name string, limit int64, use func(io.Reader) error) error
}

// Stream is r's own, or one that has the whole object in memory.
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

// As returns r as a T, or else the Reader that it wraps as one: a wrapper has a method Unwrap() Reader.
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

// Close ends what r may have running, such as an ssh. There is nothing to lose by then.
func Close(r Reader) {
	if c, ok := As[io.Closer](r); ok {
		_ = c.Close()
	}
}

// Bucket is a Reader that can be written.
type Bucket interface {
	Reader
	// Write stores an object, whole and durable when it returns nil, and replaces one of that name.
	// A failed or cancelled Write leaves the old object, or none.
	Write(ctx context.Context, name string, data []byte) error
}

// Object is what a listing tells of an object.
type Object struct {
	Name string
	Size int64 // bytes
}

// Lister is a Reader that can say what it holds.
type Lister interface {
	// List yields the objects whose names begin with prefix, which need not end at a slash; "" lists all.
	// They come in any order, each once, in memory that does not grow with their number. What is written or
	// removed meanwhile may be among them or not; what was not finished is not. An error, also that of ctx,
	// is the last thing yielded.
	List(ctx context.Context, prefix string) iter.Seq2[Object, error]
}

// Creator is a Bucket that can tell a new object from one that is replaced, whoever else writes.
type Creator interface {
	// Create is Write for a name that nobody has taken; else it is ErrExists, and nothing changes.
	Create(ctx context.Context, name string, data []byte) error
}

// CreateChecker is a Creator whose service may not know how to create.
type CreateChecker interface {
	// CheckCreate is errors.ErrUnsupported when Create would fail so, whatever the name. It leaves no object, and nil proves
	// nothing: not every service can be asked.
	CheckCreate(ctx context.Context) error
}

// Remover is a Bucket that objects can be taken out of.
type Remover interface {
	// Remove takes an object away, durably when it returns nil. One that is not there is ErrNotFound.
	Remove(ctx context.Context, name string) error
}

// Batch writes many objects that become durable, then visible, together at Commit. Safe for concurrent use.
type Batch interface {
	// Write takes an object in. It may not be readable under its name before Commit; data may be reused
	// when Write returns.
	Write(ctx context.Context, name string, data []byte) error
	// Commit makes all objects taken in so far durable and visible. More may be written afterwards. A
	// failed or cancelled Commit may be called again; some objects may be visible, and each is whole. It fails
	// for good when the medium may have lost some.
	Commit(ctx context.Context) error
	// Close gives up what was neither committed nor made visible by Write, leaving no trace of it.
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

// immediate is the batch of a bucket whose every Write is durable anyway.
type immediate struct{ b Bucket }

func (i immediate) Write(ctx context.Context, name string, data []byte) error {
	return i.b.Write(ctx, name, data)
}
func (i immediate) Commit(ctx context.Context) error { return ctx.Err() }
func (i immediate) Close() error                     { return nil }

// Putter takes chunks in. Safe for concurrent use.
type Putter interface {
	// Put stores data, whose digest the caller knows to be d, and returns the bytes that it takes there. It
	// need not be durable or readable yet; data may be reused when Put returns.
	Put(ctx context.Context, d blob.Digest, data []byte) (stored int64, err error)
}
