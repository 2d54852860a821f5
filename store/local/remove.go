package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"cairn/store"
)

var (
	_ store.Remover = (*Bucket)(nil)
	_ store.Sweeper = (*Bucket)(nil)
)

// Remove implements store.Remover. It keeps directories, since other writers may be about to use
// them.
func (b *Bucket) Remove(ctx context.Context, name string) error {
	if err := checkCall(ctx, name); err != nil {
		return err
	}
	if _, err := b.Stat(ctx, name); err != nil {
		return err // Stat refuses directories, which are not objects
	}
	if err := b.removeBelow(name); errors.Is(err, fs.ErrNotExist) {
		return readError(b.path(name), err)
	} else if err != nil {
		return fmt.Errorf("removing %s: %w", b.path(name), deniedError(err))
	}
	return nil
}

// removeBelow removes a file and makes that durable.
func (b *Bucket) removeBelow(name string) error {
	root, err := b.openRoot()
	if err != nil {
		return err
	}
	defer root.Close()
	dir, err := openBelow(root, path.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Unlinkat(int(dir.Fd()), path.Base(name), 0); err != nil {
		return err
	}
	return dir.Sync()
}

// Sweep implements store.Sweeper. It opens each directory once for names that follow each other, and flushes nothing.
func (b *Bucket) Sweep(ctx context.Context, names []string) error {
	root, err := b.openRoot()
	if err != nil {
		return ignoreNotFound(b.root, err)
	}
	defer root.Close()
	for len(names) > 0 {
		parent, n := path.Dir(names[0]), 1
		for n < len(names) && path.Dir(names[n]) == parent {
			n++
		}
		if err := b.sweepDir(ctx, root, parent, names[:n]); err != nil {
			return err
		}
		names = names[n:]
	}
	return ctx.Err()
}

// sweepDir removes objects in one directory.
func (b *Bucket) sweepDir(ctx context.Context, root *os.File, parent string, names []string) error {
	dir, err := openBelow(root, parent)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("removing %s: %w", b.path(names[0]), deniedError(err))
	}
	defer dir.Close()
	for _, name := range names {
		err := checkCall(ctx, name)
		if err == nil {
			err = unlinkAt(dir, path.Base(name), 0)
		}
		if err != nil {
			return fmt.Errorf("removing %s: %w", b.path(name), deniedError(err))
		}
	}
	return nil
}
