package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"cairn/blob"
	"cairn/blob/assemble"
	"cairn/blob/release"
	"cairn/blob/verify"
	"cairn/internal/atomicfile"
	"cairn/internal/blockdev"
	"cairn/internal/disk"
)

// target is what an image is assembled onto: a device or a partition of a disk image, in place; or a file,
// under a temporary name until commit.
type target struct {
	*blockdev.Target
	name    string
	inPlace bool             // a device or partition
	blank   bool             // a new file with nothing in it
	old     *blockdev.File   // what a file's name holds so far
	equal   bool             // and that is the image already: nothing else is set
	file    *atomicfile.File // of a file
	medium  *blockdev.ReadBack
	stream  *output      // what takes the image in order; then nothing else but the name is set
	passed  func() error // is called when the image is in place; may be nil
}

var (
	_ assemble.Target   = (*target)(nil)
	_ assemble.Pacer    = (*target)(nil)
	_ assemble.Rereader = (*target)(nil)
	_ assemble.Cloner   = (*target)(nil)
)

// ReadBack implements assemble.Rereader. One goroutine calls it, after all was flushed.
func (t *target) ReadBack(p []byte, off int64) (n int, err error) {
	if t.medium == nil {
		if t.medium, err = t.File.ReadBack(); err != nil {
			return 0, err
		}
	}
	return t.medium.ReadAt(p, off)
}

// minClone is how many bytes are worth sharing rather than copying.
const minClone = 64 << 10

// Clone implements assemble.Cloner, for seeds that are files.
func (t *target) Clone(from io.ReaderAt, at, off, n int64) (lo, hi int64) {
	const block = 4096
	src, ok := from.(*blockdev.File)
	lo, hi = (off+block-1)/block*block, (off+n)/block*block
	if !ok || (at-off)%block != 0 || hi-lo < minClone {
		return 0, 0
	}
	if _, err := t.CloneFrom(src, at+lo-off, lo, hi-lo); err != nil {
		return 0, 0 // it is copied instead
	}
	return lo, hi
}

// openTarget claims the target for the image x.
func (f *assembleFlags) openTarget(ctx context.Context, location string, x *blob.Index) (*target, error) {
	if t, err := f.streamTarget(ctx, location, x.Size()); t != nil || err != nil {
		return t, err
	}
	at, err := disk.Resolve(location)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(at.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fileTarget(at.Path, x.Size(), 0o644)
	case err != nil:
		return nil, err
	case info.Mode().IsRegular() && at.Partition == nil:
		if err := blockdev.RefuseStray(at.Path, f.force); err != nil {
			return nil, err
		}
		return replaceTarget(ctx, at.Path, x, info.Mode(), f.jobs)
	}
	return f.inPlaceTarget(ctx, location, at, x.Size())
}

func (f *claiming) inPlaceTarget(ctx context.Context, name string, at disk.Location, size int64) (*target, error) {
	return f.claim(ctx, name, at, size, func() error { return unmoved(name, at) })
}

// claim claims a target for size bytes. check is called when it is claimed.
func (f *claiming) claim(ctx context.Context, name string, at disk.Location, size int64, check func() error) (*target, error) {
	o := blockdev.Options{Section: at.Section, Force: f.force, LockWait: f.lockWait, Notice: func(text string) { say("%s", text) }}
	t, err := blockdev.OpenTarget(ctx, at.Path, o)
	if err != nil {
		return nil, err
	}
	if err = check(); err == nil {
		err = t.Reserve(size)
	}
	if err != nil {
		t.Close()
		return nil, err
	}
	return &target{Target: t, name: name, inPlace: true}, nil
}

// unmoved refuses a target whose partition table was changed between looking it up and locking its disk.
func unmoved(name string, at disk.Location) error {
	now, err := disk.Resolve(name)
	if err != nil {
		return err
	}
	same := now.Path == at.Path && now.Section == at.Section && (now.Partition == nil) == (at.Partition == nil)
	if same && at.Partition != nil {
		same = *now.Partition == *at.Partition
	}
	if !same {
		return &blockdev.RefusedError{Path: name, Check: blockdev.CheckMoved, Why: "its partition table was changed meanwhile",
			Hint: "look at the table ('cairn disk DISK'), and run it again"}
	}
	return nil
}

// fileTarget is a file under a temporary name; if a run before was interrupted, with what that left.
func fileTarget(path string, size int64, mode fs.FileMode) (*target, error) {
	f, err := atomicfile.Resume(path, mode)
	if err != nil {
		return nil, err
	}
	left, err := f.Seek(0, 2)
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
	return &target{Target: t, name: path, blank: left == 0, file: f}, nil
}

// replaceTarget is a file that will replace one. What is there may be the image already, else it serves as
// a seed.
func replaceTarget(ctx context.Context, path string, x *blob.Index, mode fs.FileMode, jobs int) (*target, error) {
	old, err := blockdev.OpenRead(path, blockdev.Section{})
	if err != nil {
		return nil, err
	}
	equal, err := holds(ctx, old, x, jobs)
	if equal {
		equal = atomicfile.Sync(path) == nil // who wrote it may not have flushed it; then it is written anew
	}
	if equal || err != nil {
		old.Close()
		return &target{equal: equal}, err
	}
	t, err := fileTarget(path, x.Size(), mode)
	if err != nil {
		old.Close()
		return nil, err
	}
	t.old = old
	return t, nil
}

var errDiffers = errors.New("differs")

// holds says whether f is x's image. It stops at the first difference.
func holds(ctx context.Context, f *blockdev.File, x *blob.Index, jobs int) (bool, error) {
	if f.Size() != x.Size() {
		return false, nil
	}
	looking, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	report, err := verify.Image(looking, x, f, verify.Options{Workers: jobs, Progress: func(r verify.Report) {
		if r.Bad > 0 {
			stop(errDiffers)
		}
	}})
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	return err == nil && report.Bad == 0, nil // what cannot be read will be written anew
}

// finish makes the target final: a file gets its name; behind an image on a device or partition the tail is treated as
// told, and the kernel reads the partition table that a whole disk may have got.
func (t *target) finish(ctx context.Context, x *blob.Index, tail string) error {
	if t.stream != nil {
		return t.stream.finish()
	}
	if t.file != nil {
		return commit(t.name, t.file)
	}
	var err error
	rest := t.Size() - x.Size()
	switch tail {
	case tailZero:
		err = errors.Join(inSteps(ctx, x.Size(), rest, 64<<20, t.Zero), t.Sync())
	case tailDiscard: // some devices discard nothing smaller
		err = errors.Join(inSteps(ctx, x.Size(), rest, 1<<30, t.Discard), t.Sync())
	}
	t.rereadPartitions()
	if err != nil {
		return fmt.Errorf("the image is in place, but not the tail of %d bytes behind it: %w", rest, err)
	}
	if t.passed != nil {
		return t.passed()
	}
	return nil
}

// rereadPartitions has the kernel forget the partitions that a disk had before. The image is in place in any case.
func (t *target) rereadPartitions() {
	if err := t.RereadPartitions(); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		say("warning: the kernel goes on with the old partitions of %s until 'blockdev --rereadpt %s' or a restart: %v", t.name, t.Path(), err)
	}
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

// The ways to treat what lies behind the image on a partition.
const (
	tailKeep    = "keep"
	tailZero    = "zero"
	tailDiscard = "discard"
)

// close ends the use of a target. What is left of a file serves the next run, unless it fills the disk or there will be none.
func (t *target) close(err error) {
	if t.old != nil {
		t.old.Close()
	}
	if t.medium != nil {
		_ = t.medium.Close()
	}
	switch {
	case t.stream != nil: // it was closed, or has failed
	case t.file == nil:
		t.Close()
	case errors.Is(err, syscall.ENOSPC) || is[release.TreeError](err):
		_ = t.file.Discard() // the job has failed anyway
	default:
		t.file.Close()
	}
}

// refuseOverlap refuses seeds that are the target's own bytes.
func refuseOverlap(mine *blockdev.File, seeds []openSeed, location string) error {
	for _, s := range seeds {
		why, err := blockdev.Overlaps(mine, s.file)
		if err != nil {
			return fmt.Errorf("comparing seed %s with target %s: %w", s.name, location, err)
		}
		if why != "" {
			return &blockdev.RefusedError{Path: location, Check: blockdev.CheckOverlap, Why: fmt.Sprintf("it overlaps the seed %s: %s", s.name, why),
				Hint: "leave that seed out: what the target holds is used without it"}
		}
	}
	return nil
}
