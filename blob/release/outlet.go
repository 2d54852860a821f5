package release

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"cairn/blob"
	"cairn/internal/atomicfile"
	"cairn/internal/openfile"
	"cairn/store"
	"cairn/store/locate"
)

// OutletOptions are the settings of an Outlet. The zero value replaces an existing index.
type OutletOptions struct {
	CreateOnly bool       // an existing index is store.ErrExists, and is kept
	Notes      func(Note) // called with AttributesLost; may be nil
}

// Outlet is the name under which an index is published.
type Outlet struct {
	bucket  store.Bucket
	name    string
	path    string           // of a local file that may be replaced; else ""
	stream  *openfile.Output // used instead of bucket, name and path; nil for none
	options OutletOptions
}

// NoCreateError reports that a service cannot tell whether an index is new, which CreateOnly needs. It
// wraps errors.ErrUnsupported.
type NoCreateError struct {
	Bucket store.Bucket // the bucket that cannot ask; nil if Err is the answer of the service
	Err    error
}

func (e *NoCreateError) Error() string {
	if e.Bucket == nil {
		return e.Err.Error()
	}
	return fmt.Sprintf("%v cannot tell whether an index is new: %v", e.Bucket, e.Err)
}

func (e *NoCreateError) Unwrap() error { return e.Err }

// OpenOutlet returns the outlet at a location: a local file, a file on a server, or a stream in the
// form that openfile.OpenOutput accepts. The directory must exist. As far as possible, a location that
// cannot be written is an error now instead of after the work.
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
		return nil, out.wrapUnsupported(err)
	}
	return out, nil
}

// checkReachable asks for the index. It ignores errors except an unavailable store, because a store may
// let clients write names that they may not read.
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

func (o *Outlet) wrapUnsupported(err error) error {
	if o.options.CreateOnly && errors.Is(err, errors.ErrUnsupported) {
		return &NoCreateError{Err: err}
	}
	return err
}

// Publish writes an index whose chunks are durable already, as Publisher.Publish ensures. After an
// error the old index is there, or all of the new one.
func (o *Outlet) Publish(ctx context.Context, x *blob.Index) error {
	switch {
	case o.stream != nil:
		_, err := x.WriteTo(o.stream)
		return errors.Join(err, o.stream.Close())
	case o.options.CreateOnly:
		creator, _ := store.As[store.Creator](o.bucket) // newOutlet has checked it
		return o.wrapUnsupported(creator.Create(ctx, o.name, x.Encode()))
	case o.path != "":
		return o.replaceFile(ctx, x)
	}
	return o.bucket.Write(ctx, o.name, x.Encode())
}

// IsStream reports whether the outlet is a stream, beside which nothing can lie.
func (o *Outlet) IsStream() bool { return o.stream != nil }

// mapName returns the name of the map of packs of the index x.
func (o *Outlet) mapName(x *blob.Index) string {
	return strings.TrimSuffix(o.name, IndexSuffix) + mapSuffix(x.Digest())
}

// publishMap writes the map of packs of an index that Publish is going to write.
func (o *Outlet) publishMap(ctx context.Context, x *blob.Index, packMap []byte) error {
	if o.IsStream() {
		return errors.New("the map of packs lies beside the index, and nothing can lie beside a stream")
	}
	return o.bucket.Write(ctx, o.mapName(x), packMap)
}

// removeMap removes the map of packs of an index that is published without packs now. A reader with the map would look in
// vain for packs that are gone, and then read chunks, so failures do no harm. Only the end of ctx is an error.
func (o *Outlet) removeMap(ctx context.Context, x *blob.Index) error {
	if o.IsStream() || o.options.CreateOnly {
		return nil
	}
	remover, can := store.As[store.Remover](o.bucket)
	if !can {
		return nil
	}
	if _, err := o.bucket.Stat(ctx, o.mapName(x)); err == nil {
		_ = remover.Remove(ctx, o.mapName(x))
	}
	return ctx.Err()
}

// replaceFile writes an index to a local file, atomically and durably, without a second copy in memory.
// It keeps the attributes of the replaced file.
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
