package deploy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"cairn/blob"
	"cairn/blob/release"
	"cairn/blob/verify"
	"cairn/internal/atomicfile"
	"cairn/internal/blockdev"
	"cairn/internal/disk"
)

// Target is what an image is put onto: a device or partition, in place; a file, under a temporary name until it is
// whole; or a stream.
type Target struct {
	name   string
	bytes  *bytesOf         // nil for a stream, and for a target that is only looked at
	before *blockdev.File   // what its name holds so far; nil for nothing
	file   *atomicfile.File // the new file that bytes are of; nil in place
	stream *Stream

	inPlace bool         // the image is written over what the target held
	whole   bool         // before is the image
	blank   bool         // there is nothing on it
	then    func() error // is called when the image is in place; may be nil
	failed  error        // how Run ended
}

// Stream takes an image in order.
type Stream struct {
	io.Writer          // may be an assemble.ZeroWriter
	Name      string   // for messages
	File      *os.File // what is written to, which must not be a seed; nil if that is not known
	// Finish is called when all was written. May be nil.
	Finish func() error
}

// Target returns the stream as a target.
func (s Stream) Target() *Target { return &Target{name: s.Name, stream: &s, blank: true} }

// Claimed returns a device or file that the caller has claimed as a target in place. then is called when the image is in
// place; it may be nil.
func Claimed(name string, t *blockdev.Target, then func() error) *Target {
	return &Target{name: name, bytes: &bytesOf{Target: t}, before: &t.File, inPlace: true, then: then}
}

// Claim claims the target at a location, as disk.Resolve takes it, for the image x. A target that is in use or too small
// is a *blockdev.RefusedError.
func Claim(ctx context.Context, location string, x *blob.Index, o Options) (*Target, error) {
	at, err := disk.Resolve(location)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(at.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return newFile(at.Path, x.Size(), 0o644)
	case err != nil:
		return nil, err
	case info.Mode().IsRegular() && at.Partition == nil:
		if err := blockdev.RefuseStray(at.Path, o.Force); err != nil {
			return nil, err
		}
		return replaceFile(ctx, at.Path, x, info.Mode(), o.Workers)
	}
	return claimInPlace(ctx, location, at, x.Size(), o)
}

func claimInPlace(ctx context.Context, name string, at disk.Location, size int64, o Options) (*Target, error) {
	t, err := o.ClaimDevice(ctx, at.Path, at.Section)
	if err != nil {
		return nil, err
	}
	if err = refuseMoved(name, at); err == nil {
		err = t.Reserve(size)
	}
	if err != nil {
		t.Close()
		return nil, err
	}
	return Claimed(name, t, nil), nil
}

// ClaimDevice claims a section of an existing file or device, for Claimed.
func (o Options) ClaimDevice(ctx context.Context, path string, section blockdev.Section) (*blockdev.Target, error) {
	return blockdev.OpenTarget(ctx, path, blockdev.Options{
		Section: section, Force: o.Force, LockWait: o.LockWait, Notice: func(text string) { o.note(Waiting{text}) },
	})
}

// refuseMoved refuses a target whose partition table was changed between looking it up and locking its disk.
func refuseMoved(name string, at disk.Location) error {
	now, err := disk.Resolve(name)
	if err != nil {
		return err
	}
	same := now.Path == at.Path && now.Section == at.Section && (now.Partition == nil) == (at.Partition == nil)
	if same && at.Partition != nil {
		same = *now.Partition == *at.Partition
	}
	if !same {
		return &blockdev.RefusedError{Path: name, Check: blockdev.CheckMoved, Why: "its partition table was changed meanwhile"}
	}
	return nil
}

// newFile returns a file under a temporary name, with what an interrupted job left in it.
func newFile(path string, size int64, mode fs.FileMode) (*Target, error) {
	f, err := atomicfile.Resume(path, mode)
	if err != nil {
		return nil, err
	}
	left, err := f.Seek(0, io.SeekEnd)
	if err == nil {
		err = f.Truncate(size)
	}
	var t *blockdev.Target
	if err == nil {
		t, err = blockdev.TargetOf(f.File)
	}
	if err != nil {
		return nil, errors.Join(err, f.Discard())
	}
	return &Target{name: path, bytes: &bytesOf{Target: t}, blank: left == 0, file: f}, nil
}

// replaceFile returns a file that will replace one. The old file may hold the image already; else it is a seed.
func replaceFile(ctx context.Context, path string, x *blob.Index, mode fs.FileMode, workers int) (*Target, error) {
	old, err := blockdev.OpenRead(path, blockdev.Section{})
	if err != nil {
		return nil, err
	}
	whole, err := holds(ctx, old, x, workers)
	whole = whole && atomicfile.Sync(path) == nil // its writer may not have flushed it; then it is written anew
	if whole {
		return &Target{name: path, before: old, whole: true}, nil
	}
	var t *Target
	if err == nil {
		t, err = newFile(path, x.Size(), mode)
	}
	if err != nil {
		old.Close()
		return nil, err
	}
	t.before = old
	return t, nil
}

// Look opens what the target's name holds so far, for a preview, and claims nothing.
func Look(ctx context.Context, location string, x *blob.Index, o Options) (*Target, error) {
	at, err := disk.Resolve(location)
	if err != nil {
		return nil, err
	}
	t := &Target{name: location}
	if err = blockdev.RefuseStray(at.Path, nil); err == nil {
		t.before, err = blockdev.OpenRead(at.Path, at.Section)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return t, nil
	case err != nil:
		return nil, err
	}
	t.inPlace = t.before.IsDevice() || at.Partition != nil
	switch {
	case !t.inPlace:
		t.whole, err = holds(ctx, t.before, x, o.Workers)
	case t.before.Size() < x.Size():
		err = blockdev.TooSmall(location, t.before.Size(), x.Size())
	}
	if err != nil {
		t.before.Close()
		return nil, err
	}
	return t, nil
}

var errDiffers = errors.New("differs")

// holds reports whether f is x's image. It stops at the first difference.
func holds(ctx context.Context, f *blockdev.File, x *blob.Index, workers int) (bool, error) {
	if f.Size() != x.Size() {
		return false, nil
	}
	looking, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	report, err := verify.Image(looking, x, f, verify.Options{Workers: workers, Progress: func(r verify.Report) {
		if r.Bad > 0 {
			stop(errDiffers)
		}
	}})
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	return err == nil && report.Bad == 0, nil // what cannot be read will be written anew
}

// Whole reports whether the target is a file that holds the image already, on the medium: there is nothing to do.
func (t *Target) Whole() bool { return t.whole }

// InPlace reports whether the image is written over what the target held: onto a device or partition.
func (t *Target) InPlace() bool { return t.inPlace }

// IsStream reports whether the target takes the image in order, and nothing of it can be read back.
func (t *Target) IsStream() bool { return t.stream != nil }

// refuseSeeds refuses seeds that are the target's own bytes.
func (t *Target) refuseSeeds(seeds []openSeed) error {
	for _, s := range seeds {
		why, err := t.overlaps(s)
		if err != nil {
			return fmt.Errorf("comparing seed %s with target %s: %w", s.name, t.name, err)
		}
		if why != "" {
			return &blockdev.RefusedError{Path: t.name, Check: blockdev.CheckOverlap, Why: why}
		}
	}
	return nil
}

func (t *Target) overlaps(s openSeed) (why string, err error) {
	switch {
	case t.stream != nil && t.stream.File != nil:
		mine, err := t.stream.File.Stat()
		if err != nil {
			return "", err
		}
		if info, err := os.Stat(s.file.Path()); err == nil && os.SameFile(info, mine) {
			return "it is the seed " + s.name, nil
		}
	case t.inPlace:
		why, err := blockdev.Overlaps(t.before, s.file)
		if why != "" {
			why = fmt.Sprintf("it overlaps the seed %s: %s", s.name, why)
		}
		return why, err
	}
	return "", nil
}

// Tail says what becomes of a partition's bytes behind the image.
type Tail string

// The empty Tail is TailKeep.
const (
	TailKeep    Tail = "keep"
	TailZero    Tail = "zero"
	TailDiscard Tail = "discard"
)

// finish makes a target final that holds an image of size bytes.
func (t *Target) finish(ctx context.Context, size int64, o *Options) error {
	switch {
	case t.stream != nil && t.stream.Finish != nil:
		return t.stream.Finish()
	case t.stream != nil:
		return nil
	case t.file != nil:
		return t.commit(o)
	}
	var err error
	rest := t.bytes.Size() - size
	switch o.Tail {
	case TailZero:
		err = errors.Join(inSteps(ctx, size, rest, 64<<20, t.bytes.Zero), t.bytes.Sync())
	case TailDiscard: // some devices discard nothing smaller
		err = errors.Join(inSteps(ctx, size, rest, 1<<30, t.bytes.Discard), t.bytes.Sync())
	}
	if kept := t.bytes.RereadPartitions(); kept != nil && !errors.Is(kept, errors.ErrUnsupported) {
		o.note(OldPartitions{t.name, t.bytes.Path(), kept}) // the image is in place in any case
	}
	if err != nil {
		return fmt.Errorf("the image is in place, but not the tail of %d bytes behind it: %w", rest, err)
	}
	if t.then != nil {
		return t.then()
	}
	return nil
}

// commit gives the file its name.
func (t *Target) commit(o *Options) error {
	err := t.file.Commit()
	if lost := t.file.Lost(); lost != nil {
		o.note(AttributesLost{t.name, lost})
	}
	return err
}

// inSteps does n bytes from off on, in pieces that end at multiples of step: the kernel does each to its end, whatever
// signal comes.
func inSteps(ctx context.Context, off, n, step int64, do func(off, n int64) error) error {
	for end := off + n; off < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		k := min(end-off, step-off%step)
		if err := do(off, k); err != nil {
			return err
		}
		off += k
	}
	return nil
}

// Close ends the use of the target. What is left of an unfinished file serves the next run, unless it filled the disk or
// its image is none.
func (t *Target) Close() {
	if t.bytes != nil && t.bytes.medium != nil {
		_ = t.bytes.medium.Close()
	}
	if t.before != nil && (t.bytes == nil || t.file != nil) {
		t.before.Close()
	}
	_, noImage := errors.AsType[release.TreeError](t.failed)
	switch {
	case t.bytes == nil:
	case t.file == nil:
		t.bytes.Close()
	case errors.Is(t.failed, syscall.ENOSPC) || noImage:
		_ = t.file.Discard() // the job has failed anyway
	default:
		t.file.Close()
	}
}
