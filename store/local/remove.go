package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"

	"golang.org/x/sys/unix"

	"cairn/store"
)

var _ store.Remover = (*Bucket)(nil)

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
