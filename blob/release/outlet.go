package release

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"cairn/blob"
	"cairn/internal/atomicfile"
	"cairn/internal/openfile"
	"cairn/store"
	"cairn/store/locate"
)

// OutletOptions say how a name is given. The zero value replaces what has the name.
type OutletOptions struct {
	CreateOnly bool       // an index that exists is store.ErrExists, and stays
	Notes      func(Note) // called with AttributesLost; may be nil
}

// Outlet is the name that an index is published under.
type Outlet struct {
	bucket  store.Bucket
	name    string
	path    string           // of a local file that may be replaced; else ""
	stream  *openfile.Output // in place of all the others; or nil
	options OutletOptions
}

// NoCreateError means that a service cannot tell whether an index is new, as CreateOnly needs. It wraps
// errors.ErrUnsupported.
type NoCreateError struct {
	Bucket store.Bucket // one that has no way to ask; nil when Err is the service's own answer
	Err    error
}

func (e *NoCreateError) Error() string {
	if e.Bucket == nil {
		return e.Err.Error()
	}
	return fmt.Sprintf("%v cannot tell whether an index is new: %v", e.Bucket, e.Err)
}

func (e *NoCreateError) Unwrap() error { return e.Err }

// OpenOutlet returns the outlet at a location, whose directory exists: a file here or on a server, or a stream as
// openfile.OpenOutput takes it. A location that cannot be written is an error now, as far as it can be known, and not
// after the work.
func OpenOutlet(ctx context.Context, a locate.Access, at locate.Location, o OutletOptions) (*Outlet, error) {
	path, local := at.Local()
	if at.IsStream() || local && openfile.IsStream(path) {
		out, err := openfile.OpenOutput(ctx, cmp.Or(path, openfile.Dash))
		return &Outlet{stream: out}, err
	}
	b, name, err := a.FileBucket(at)
	if err != nil {
		return nil, err
	}
	return newOutlet(ctx, b, name, path, o)
}

// OutletIn is OpenOutlet for a name in a directory that is open as a bucket.
func OutletIn(ctx context.Context, b store.Bucket, dir locate.Location, name string, o OutletOptions) (*Outlet, error) {
	path, local := dir.Local()
	if local {
		path = filepath.Join(path, name)
	}
	return newOutlet(ctx, b, name, path, o)
}

func newOutlet(ctx context.Context, b store.Bucket, name, path string, o OutletOptions) (*Outlet, error) {
	out := &Outlet{bucket: b, name: name, path: path, options: o}
	_, creates := store.As[store.Creator](b)
	if o.CreateOnly && !creates {
		return nil, &NoCreateError{b, errors.ErrUnsupported}
	}
	err := out.checkReachable(ctx)
	if checker, can := store.As[store.CreateChecker](b); can && o.CreateOnly && err == nil {
		err = checker.CheckCreate(ctx)
	}
	if err == nil && path != "" {
		err = atomicfile.Check(path)
	}
	if err != nil {
		return nil, out.explain(err)
	}
	return out, nil
}

// checkReachable asks for the index. An error other than an unavailable store does not count: a store may let clients
// write what they may not read.
func (o *Outlet) checkReachable(ctx context.Context) error {
	_, err := o.bucket.Stat(ctx, o.name)
	switch {
	case err == nil && o.options.CreateOnly:
		return store.ErrExists
	case errors.Is(err, store.ErrUnavailable):
		return err
	}
	return ctx.Err()
}

func (o *Outlet) explain(err error) error {
	if o.options.CreateOnly && errors.Is(err, errors.ErrUnsupported) {
		return &NoCreateError{Err: err}
	}
	return err
}

// Publish writes an index, whose chunks are durable already; Publisher.Publish makes sure of that. After an error there
// is the index that was there before, or the new one as a whole.
func (o *Outlet) Publish(ctx context.Context, x *blob.Index) error {
	switch {
	case o.stream != nil:
		_, err := x.WriteTo(o.stream)
		return errors.Join(err, o.stream.Close())
	case o.options.CreateOnly:
		creator, _ := store.As[store.Creator](o.bucket) // newOutlet asked
		return o.explain(creator.Create(ctx, o.name, x.Encode()))
	case o.path != "":
		return o.replaceFile(ctx, x)
	}
	return o.bucket.Write(ctx, o.name, x.Encode())
}

// replaceFile writes an index to a local file, whole and durable, without holding it in memory twice. It keeps the
// attributes of a file that it replaces.
func (o *Outlet) replaceFile(ctx context.Context, x *blob.Index) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f, err := atomicfile.Create(o.path, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := x.WriteTo(f); err != nil {
		return err
	}
	err = f.Commit()
	if lost := f.Lost(); lost != nil && o.options.Notes != nil {
		o.options.Notes(AttributesLost{o.path, lost})
	}
	return err
}
