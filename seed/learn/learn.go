// Package learn opens the seeds of this machine and learns their content: from an index that is given
// with the seed, from the record of an earlier scan, or from a scan. It parses the places of seeds as
// users write them. It does not know what the seeds are used for. What it learns is a hint: the bytes of
// a seed must be hashed before they are used.
package learn

import (
	"context"
	"fmt"

	"cairn/blob"
	"cairn/blob/release"
	"cairn/blob/scan"
	"cairn/blob/verify"
	"cairn/chunker"
	"cairn/internal/blockdev"
	"cairn/internal/disk"
	"cairn/seed/known"
)

// Options are the settings of a learner. With the zero value it remembers nothing and reports nothing.
type Options struct {
	Releases release.Access // reads the indexes of seeds
	State    known.Dir      // records of devices; "" for none
	ReadOnly bool           // State is read, but not changed
	Workers  int            // number of concurrent workers of a scan, at least 1

	// Notes is called with each event that does not end the job. May be nil.
	Notes func(Note)
	// Scanning is called before a scan. It returns two functions: progress is called during the scan,
	// never concurrently, and end after it. May be nil.
	Scanning func(name string, size int64) (progress func(scan.Stats), end func())
}

// Note is an event that does not end the job: one of the types below.
type Note any

// SeedFound reports which device or file the name of a seed stands for on this machine.
type SeedFound struct{ Seed, Is string }

// SeedLeftOut reports that a seed cannot be read.
type SeedLeftOut struct {
	Seed string
	Err  error
}

// IndexLeftOut reports that the index of a seed cannot be used. The seed is scanned instead.
type IndexLeftOut struct {
	Seed string
	Err  error
}

// NotRemembered reports that Options.State could not be read or changed.
type NotRemembered struct{ Err error }

func (o Options) emitNote(n Note) {
	if o.Notes != nil {
		o.Notes(n)
	}
}

// Index returns the index of a seed's content, cut as x is. The index is given with the seed, is recalled
// from State, or comes from a scan.
func (o Options) Index(ctx context.Context, s Opened, x *blob.Index) (*blob.Index, error) {
	if held := o.GivenIndex(ctx, s, x); held != nil {
		return held, nil
	}
	if held := o.Recall(s.File, x); held != nil {
		return held, nil
	}
	return o.Scan(ctx, s.Name, s.File, DataSize(ctx, s.File, x), x)
}

// GivenIndex returns the index that was given with a seed, or nil if there is none or it is unusable.
func (o Options) GivenIndex(ctx context.Context, s Opened, x *blob.Index) *blob.Index {
	if s.Index.IsZero() {
		return nil
	}
	held, err := release.Open(ctx, o.Releases, s.Index)
	if err != nil {
		o.emitNote(IndexLeftOut{s.Name, err})
		return nil
	}
	why := Unlike(held, x)
	if release.KindOf(s.Index, held) == release.Tree {
		why = "is of a directory tree"
	}
	if why != "" {
		o.emitNote(IndexLeftOut{s.Name, fmt.Errorf("its index %s %s", s.Index, why)})
		return nil
	}
	return held
}

// Unlike returns why held cannot share chunks with x except by chance, whatever the images hold. It
// returns "" if it can.
func Unlike(held, x *blob.Index) string {
	switch {
	case held.Algorithm() != x.Algorithm():
		return fmt.Sprintf("has %v digests, not %v", held.Algorithm(), x.Algorithm())
	case held.Params() != x.Params():
		return fmt.Sprintf("has chunks of %v bytes, not %v", held.Params(), x.Params())
	}
	return ""
}

// DeviceName returns the name of f's device in State. ok is false without a State or without a name.
func (o Options) DeviceName(f *blockdev.File) (name string, ok bool) {
	if o.State == "" {
		return "", false
	}
	name, err := f.Identity()
	o.NoteFailure(err)
	return name, err == nil
}

// NoteFailure emits a note about an error of State, which does not end the job: it costs a scan next time.
func (o Options) NoteFailure(err error) {
	if err != nil {
		o.emitNote(NotRemembered{err})
	}
}

// contentOf returns the identity of f's content, cut as x is. State returns a record only for an equal
// identity.
func contentOf(f *blockdev.File, x *blob.Index) known.Content {
	return known.Content{Size: f.Size(), Filesystem: disk.FilesystemIdentity(f), Algorithm: x.Algorithm(), Params: x.Params()}
}

// Recall returns the recorded index of f's content, cut as x is, or nil.
func (o Options) Recall(f *blockdev.File, x *blob.Index) *blob.Index {
	device, ok := o.DeviceName(f)
	if !ok {
		return nil
	}
	held := o.State.Recall(device, contentOf(f, x))
	if held == nil || !HoldsMost(held, f) {
		return nil
	}
	return held
}

// HoldsMost hashes up to 32 chunks of x in f, and reports whether at least three in four match. If they
// do not, f has other content by now, and a scan costs less than the downloads.
func HoldsMost(x *blob.Index, f *blockdev.File) bool {
	const samples = 32
	looked, wrong := 0, 0
	for n := range samples {
		i := n * x.Len() / samples
		if x.Len() == 0 || x.IsZero(i) {
			continue
		}
		c := x.At(i)
		p := make([]byte, c.Size)
		k, _ := f.ReadAt(p, c.Offset)
		looked++
		if k < len(p) || x.Algorithm().Sum(p) != c.Digest {
			wrong++
		}
	}
	return wrong*4 <= looked
}

// Remember records x as the index of f's content.
func (o Options) Remember(f *blockdev.File, x *blob.Index) {
	if device, ok := o.DeviceName(f); ok && !o.ReadOnly {
		o.NoteFailure(o.State.Remember(device, contentOf(f, x), x))
	}
}

// Scan cuts and hashes the first n bytes of f as x was, and records the index.
func (o Options) Scan(ctx context.Context, name string, f *blockdev.File, n int64, x *blob.Index) (*blob.Index, error) {
	like := scan.Like(x)
	like.Workers = o.Workers
	if o.Scanning != nil {
		progress, end := o.Scanning(name, n)
		defer end()
		like.Progress = progress
	}
	held, _, err := scan.Image(ctx, chunker.FromReaderAt(f, n), like)
	if err != nil {
		return nil, err
	}
	o.Remember(f, held)
	return held, nil
}

// maxPadding limits how many zeros behind an image in a seed are recognised as padding.
const maxPadding = 1 << 20

// DataSize returns how many bytes of f to scan for x. This is all of f, or x's size if zeros follow
// there, as in a copy through NBD. Without the zeros the last chunk of f is the image's.
func DataSize(ctx context.Context, f *blockdev.File, x *blob.Index) int64 {
	if f.Size() <= x.Size() || f.Size()-x.Size() > maxPadding {
		return f.Size()
	}
	if zeros, err := verify.Zeros(ctx, f, x.Size(), f.Size()); err != nil || !zeros {
		return f.Size()
	}
	return x.Size()
}
