package deploy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"cairn/blob"
	"cairn/blob/assemble"
	"cairn/blob/release"
	"cairn/blob/verify"
	"cairn/internal/atomicfile"
	"cairn/internal/blockdev"
	"cairn/internal/disk"
	"cairn/internal/openfile"
	"cairn/seed/learn"
)

// Target is the destination of an image. A device or partition is written in place. A file has a
// temporary name until it is complete. A stream is written in order.
type Target struct {
	name   string
	dest   *assembleTarget  // nil for a stream, a whole file, and a preview
	before *blockdev.File   // the old content under the target's name; nil for none
	file   *atomicfile.File // the new file behind dest; nil in place
	stream *openfile.Output

	inPlace bool         // the image overwrites the target's old content
	whole   bool         // before holds the image
	blank   bool         // the target has no content
	onFinal func() error // called after the image is in place; may be nil
	failed  error        // the error of Run
}

// ShowTarget returns a target's name for messages.
func ShowTarget(location string) string {
	if location == openfile.Dash {
		return "stdout"
	}
	return location
}

// Dir returns the directory in which the target is a file with a temporary name, or "" for another kind of target.
func (t *Target) Dir() string {
	if t.file == nil {
		return ""
	}
	return filepath.Dir(t.file.Name())
}

func streamTarget(location string, out *openfile.Output) *Target {
	return &Target{name: ShowTarget(location), stream: out, blank: true}
}

func targetInPlace(name string, t *blockdev.Target, onFinal func() error) *Target {
	return &Target{name: name, dest: &assembleTarget{Target: t}, before: &t.File, inPlace: true, onFinal: onFinal}
}

// Claim claims the target at a location for the image x. The location has a form that disk.Resolve or
// openfile.OpenOutput accepts. A target that is in use or too small is a *blockdev.RefusedError.
func Claim(ctx context.Context, location string, x *blob.Index, o Options) (*Target, error) {
	out, err := openfile.OpenOutput(ctx, location)
	switch {
	case err != nil:
		return nil, err
	case out != nil:
		return claimOutput(ctx, location, out, x.Size(), o)
	}
	if err := refuseCharacter(location, x.Size()); err != nil {
		return nil, err
	}
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
		return replaceFile(ctx, at.Path, x, info.Mode(), o)
	}
	return claimInPlace(ctx, location, at, x.Size(), o)
}

func claimInPlace(ctx context.Context, name string, at disk.Location, size int64, o Options) (*Target, error) {
	t, err := o.claimDevice(ctx, at.Path, at.Section)
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
	return targetInPlace(name, t, nil), nil
}

// claimOutput claims a block device that is an open file of this process, or a stream.
func claimOutput(ctx context.Context, location string, out *openfile.Output, size int64, o Options) (*Target, error) {
	info, err := out.File().Stat()
	if err != nil {
		return nil, err
	}
	name := openfile.Node(out.File(), info)
	switch {
	case blockdev.IsBlockDevice(info):
		t, advance, err := o.claimOpened(ctx, name, out.File(), size)
		if err != nil {
			return nil, err
		}
		return targetInPlace(name, t, advance), nil
	case info.Mode()&fs.ModeCharDevice != 0 && flashKind(name, info) != "" && !isUpdatedVolume(sysfsOf(info)):
		return nil, refuseCharacter(name, size)
	case info.Mode().IsRegular(): // a shell creates a file if the device of that name is missing
		err = blockdev.RefuseStray(name, o.Force)
	}
	if err != nil {
		return nil, err
	}
	return streamTarget(location, out), nil
}

// claimOpened claims size bytes of an open block device, from the offset of the open file on. advance
// moves the offset behind them.
func (o Options) claimOpened(ctx context.Context, name string, file *os.File, size int64) (t *blockdev.Target, advance func() error, err error) {
	flags, err := openfile.Flags(file)
	if err != nil {
		return nil, nil, err
	}
	if flags&unix.O_APPEND != 0 {
		return nil, nil, &blockdev.RefusedError{
			Path: name, Check: blockdev.CheckNotTarget, Why: "it is open for appending (>>), which a device does not allow",
			Hint: "redirect with > or 1<>",
		}
	}
	off, err := file.Seek(0, io.SeekCurrent)
	if err != nil {
		return nil, nil, err
	}
	if t, err = o.claimDevice(ctx, name, blockdev.Section{Offset: off}); err != nil {
		return nil, nil, err
	}
	if err := t.Reserve(size); err != nil {
		t.Close()
		return nil, nil, err
	}
	return t, func() error {
		_, err := file.Seek(off+size, io.SeekStart)
		return err
	}, nil
}

func (o Options) claimDevice(ctx context.Context, path string, section blockdev.Section) (*blockdev.Target, error) {
	return blockdev.OpenTarget(ctx, path, blockdev.Options{
		Section: section, Force: o.Force, LockWait: o.LockWait, Notice: func(text string) { o.emitNote(Waiting{text}) },
	})
}

// refuseMoved refuses a target whose partition table changed between its lookup and the lock of its
// disk.
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

// newFile returns a file under a temporary name. It may have content that an interrupted job left.
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
	return &Target{name: path, dest: &assembleTarget{Target: t}, blank: left == 0, file: f}, nil
}

// replaceFile returns a file that will replace an existing one. If the old file holds the image, that
// file is the target, whole. Otherwise the old file is a seed.
func replaceFile(ctx context.Context, path string, x *blob.Index, mode fs.FileMode, o Options) (*Target, error) {
	old, err := blockdev.OpenRead(path, blockdev.Section{})
	if err != nil {
		return nil, err
	}
	whole, err := holdsImage(ctx, old, x, o.Workers)
	if whole && o.ImageSum != nil {
		if err := assemble.CheckImageSum(ctx, old, x.Size(), *o.ImageSum); err != nil {
			old.Close()
			return nil, err
		}
	}
	whole = whole && atomicfile.Sync(path) == nil // its writer may not have flushed it; after an error it is written again
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

// Look opens the old content under the target's name for a preview. It claims nothing.
func Look(ctx context.Context, location string, x *blob.Index, o Options) (*Target, error) {
	if openfile.IsStream(location) {
		return streamTarget(location, new(openfile.Output)), nil
	}
	if err := refuseCharacter(location, x.Size()); err != nil {
		return nil, err
	}
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
		t.whole, err = holdsImage(ctx, t.before, x, o.Workers)
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

// holdsImage reports whether f holds the image of x. It stops at the first difference.
func holdsImage(ctx context.Context, f *blockdev.File, x *blob.Index, workers int) (bool, error) {
	if f.Size() != x.Size() {
		return false, nil
	}
	scanning, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	report, err := verify.Image(scanning, x, f, verify.Options{Workers: workers, Progress: func(r verify.Report) {
		if r.Bad > 0 {
			stop(errDiffers)
		}
	}})
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	return err == nil && report.Bad == 0, nil // unreadable content will be overwritten
}

// Whole reports whether the target is a file that already holds the image on the medium. Such a target
// needs no plan.
func (t *Target) Whole() bool { return t.whole }

// IsStream reports whether the target takes the image in order and cannot be read back.
func (t *Target) IsStream() bool { return t.stream != nil }

// oldContent returns the reader of the bytes that the image will replace, or nil if there are none.
func (t *Target) oldContent() io.ReaderAt {
	switch {
	case t.blank || t.stream != nil:
		return nil
	case t.dest != nil:
		return t.dest
	case t.inPlace:
		return t.before
	}
	return nil
}

// refuseSeeds refuses seeds that share bytes with the target.
func (t *Target) refuseSeeds(seeds []learn.Opened) error {
	for _, s := range seeds {
		why, err := t.overlapsSeed(s)
		if err != nil {
			return fmt.Errorf("comparing seed %s with target %s: %w", s.Name, t.name, err)
		}
		if why != "" {
			return &blockdev.RefusedError{Path: t.name, Check: blockdev.CheckOverlap, Why: why}
		}
	}
	return nil
}

func (t *Target) overlapsSeed(s learn.Opened) (why string, err error) {
	switch {
	case t.stream != nil && t.stream.File() != nil:
		mine, err := t.stream.File().Stat()
		if err != nil {
			return "", err
		}
		if info, err := os.Stat(s.File.Path()); err == nil && os.SameFile(info, mine) {
			return "it is the seed " + s.Name, nil
		}
	case t.inPlace:
		why, err := blockdev.Overlaps(t.before, s.File)
		if why != "" {
			why = fmt.Sprintf("it overlaps the seed %s: %s", s.Name, why)
		}
		return why, err
	}
	return "", nil
}

// Tail selects the treatment of a partition's bytes behind the image.
type Tail string

// The empty Tail is TailKeep.
const (
	TailKeep    Tail = "keep"
	TailZero    Tail = "zero"
	TailDiscard Tail = "discard"
)

// finalize completes a target that holds an image of size bytes.
func (t *Target) finalize(ctx context.Context, size int64, o *Options) error {
	switch {
	case t.stream != nil:
		return t.stream.Close()
	case t.file != nil:
		err := t.file.Commit()
		if lost := t.file.Lost(); lost != nil {
			o.emitNote(release.AttributesLost{Path: t.name, Err: lost})
		}
		return err
	}
	var err error
	rest := t.dest.Size() - size
	switch o.Tail {
	case TailZero:
		err = errors.Join(inSteps(ctx, size, rest, 64<<20, t.dest.Zero), t.dest.Sync())
	case TailDiscard: // some devices discard no smaller ranges
		err = errors.Join(inSteps(ctx, size, rest, 1<<30, t.dest.Discard), t.dest.Sync())
	}
	if kept := t.dest.RereadPartitions(); kept != nil && !errors.Is(kept, errors.ErrUnsupported) {
		o.emitNote(OldPartitions{t.name, t.dest.Path(), kept}) // not an error, since the image is in place
	}
	if err != nil {
		return fmt.Errorf("the image is in place, but not the tail of %d bytes behind it: %w", rest, err)
	}
	if t.onFinal != nil {
		return t.onFinal()
	}
	return nil
}

// inSteps calls do for the n bytes from off on, in pieces that end at multiples of step. The kernel
// finishes each call before it delivers a signal.
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

// Close closes the target. The content of an unfinished file is kept for the next run, unless the file
// filled the disk or is an archive instead of an image.
func (t *Target) Close() {
	if t.dest != nil && t.dest.medium != nil {
		_ = t.dest.medium.Close()
	}
	if t.before != nil && (t.dest == nil || t.file != nil) {
		t.before.Close()
	}
	_, noImage := errors.AsType[release.TreeError](t.failed)
	switch {
	case t.dest == nil:
	case t.file == nil:
		t.dest.Close()
	case errors.Is(t.failed, syscall.ENOSPC) || noImage:
		_ = t.file.Discard() // the job has failed anyway
	default:
		t.file.Close()
	}
}
