package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"cairn/blob"
	"cairn/blob/verify"
	"cairn/internal/atomicfile"
	"cairn/internal/blockdev"
	"cairn/internal/disk"
	"cairn/seed"
)

// target is what an image is assembled onto: a device or a partition of a disk image, in place; or a file,
// under a temporary name until commit.
type target struct {
	*blockdev.Target
	isNew  bool             // a new file
	old    *seed.Seed       // what the file's name holds so far, as a seed
	equal  bool             // and that is the image already
	bytes  []*blockdev.File // what the target's bytes are, for telling overlaps
	commit func() error     // gives a new file its name
	close  func()
}

// openTarget claims the target for the image x.
func openTarget(ctx context.Context, location string, x *blob.Index, jobs int) (*target, error) {
	at, err := disk.Resolve(location)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(at.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return newFileTarget(at.Path, x.Size(), 0o644)
	case err != nil:
		return nil, err
	case info.Mode().IsRegular() && at.Partition == nil && !underDev(at.Path):
		return replaceFileTarget(ctx, at.Path, x, info.Mode(), jobs)
	}
	return inPlaceTarget(at, x.Size())
}

func underDev(path string) bool {
	abs, err := filepath.Abs(path)
	return err == nil && strings.HasPrefix(abs, "/dev/")
}

func inPlaceTarget(at disk.Location, size int64) (*target, error) {
	t, err := blockdev.OpenTarget(at.Path, blockdev.Options{Section: at.Section})
	if err != nil {
		return nil, err
	}
	if err := t.Reserve(size); err != nil {
		t.Close()
		return nil, err
	}
	return &target{Target: t, bytes: []*blockdev.File{&t.File}, commit: func() error { return nil }, close: func() { t.Close() }}, nil
}

func newFileTarget(path string, size int64, mode fs.FileMode) (*target, error) {
	f, err := atomicfile.Create(path, mode)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(size); err != nil {
		f.Close()
		return nil, err
	}
	t, err := blockdev.TargetOf(f.File)
	if err != nil {
		f.Close()
		return nil, err
	}
	return &target{Target: t, isNew: true, commit: f.Commit, close: func() { f.Close() }}, nil
}

// replaceFileTarget is a new file that will replace one. What is there may be the image already, else it
// serves as a seed.
func replaceFileTarget(ctx context.Context, path string, x *blob.Index, mode fs.FileMode, jobs int) (*target, error) {
	old, err := blockdev.OpenRead(path, blockdev.Section{})
	if err != nil {
		return nil, err
	}
	if equal, err := holds(ctx, old, x, jobs); equal || err != nil {
		old.Close()
		return &target{equal: equal}, err
	}
	t, err := newFileTarget(path, x.Size(), mode)
	if err != nil {
		old.Close()
		return nil, err
	}
	t.old = &seed.Seed{Name: path + " (its old content)", Index: x, Data: old}
	closeNew := t.close
	t.close = func() { closeNew(); old.Close() }
	return t, nil
}

var errDiffers = errors.New("differs")

// holds says whether f is x's image. It stops at the first difference.
func holds(ctx context.Context, f *blockdev.File, x *blob.Index, jobs int) (bool, error) {
	if f.Size() != x.Size() {
		return false, nil
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	report, err := verify.Image(ctx, x, f, verify.Options{Workers: jobs, Progress: func(r verify.Report) {
		if r.Bad > 0 {
			stop(errDiffers)
		}
	}})
	if errors.Is(context.Cause(ctx), errDiffers) {
		return false, nil
	}
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	return err == nil && report.Bad == 0, nil // what cannot be read will be written anew
}

// refuseOverlap refuses seeds that are the target's own bytes.
func (t *target) refuseOverlap(seeds []openSeed, location string) error {
	for _, mine := range t.bytes {
		for _, s := range seeds {
			why, err := blockdev.Overlaps(mine, s.file)
			if err != nil {
				return fmt.Errorf("comparing seed %s with target %s: %w", s.Name, location, err)
			}
			if why != "" {
				return &blockdev.RefusedError{Path: location, Why: fmt.Sprintf("it overlaps the seed %s: %s", s.Name, why),
					Hint: "what the target holds is used anyway; leave the seed out"}
			}
		}
	}
	return nil
}
