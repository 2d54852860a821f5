package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"cairn/internal/atomicfile"
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
	if err := os.Remove(b.path(name)); errors.Is(err, fs.ErrNotExist) {
		return readError(b.path(name), err)
	} else if err != nil {
		return fmt.Errorf("removing %s: %w", b.path(name), deniedError(err))
	}
	return atomicfile.SyncDir(b.path(path.Dir(name)))
}
