package deltadir

import (
	"context"
	"errors"
	"fmt"

	"cairn/blob"
	"cairn/blob/release"
	"cairn/store"
)

// CheckRemovable returns an errors.ErrUnsupported if deltas cannot be removed from a bucket.
func CheckRemovable(dir store.Bucket) error {
	_, lists := store.As[store.Lister](dir)
	_, removes := store.As[store.Remover](dir)
	if !lists || !removes {
		return fmt.Errorf("removing deltas from %v: %w", dir, errors.ErrUnsupported)
	}
	return nil
}

// KeepLast removes old deltas, and returns the number of removed files. Of the deltas to an image it keeps
// those from the first keep old images on the list. It removes all deltas to these old images, to those
// that it dropped, and to the further ones in old, because the image to is the one to update to. Then it
// removes the deltas to the images that the removed deltas were from, and so on.
//
// A list is removed or replaced before the deltas that were on it.
func KeepLast(ctx context.Context, dir store.Bucket, to *blob.Index, keep int, old []blob.Digest) (removed int, err error) {
	if err := CheckRemovable(dir); err != nil {
		return 0, err
	}
	r := &remover{dir: dir, visited: map[blob.Digest]bool{to.Digest(): true}}
	r.lister, _ = store.As[store.Lister](dir)
	r.remover, _ = store.As[store.Remover](dir)
	bases, err := ReadList(ctx, dir, to)
	if err != nil {
		return 0, err
	}
	if len(bases) > keep {
		if err := writeList(ctx, dir, to, bases[:keep]); err != nil {
			return 0, err
		}
	}
	for i, base := range bases {
		if i >= keep {
			if err := r.removeDelta(ctx, to.Digest(), base.Index); err != nil {
				return r.removed, err
			}
		}
		old = append(old, base.Index)
	}
	for _, digest := range old {
		if err := r.removeDeltasTo(ctx, digest); err != nil {
			return r.removed, err
		}
	}
	return r.removed, ctx.Err()
}

// remover removes deltas from a directory.
type remover struct {
	dir     store.Bucket
	lister  store.Lister
	remover store.Remover
	visited map[blob.Digest]bool // images whose deltas stay, or are removed already
	removed int                  // files
}

// removeDelta removes the files of a delta that is on no list.
func (r *remover) removeDelta(ctx context.Context, to, from blob.Digest) error {
	for _, name := range []string{release.DeltaName(to, from), release.DeltaIndexName(to, from)} {
		if err := r.remove(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// removeDeltasTo removes the list of the deltas to an image, then their files, and then the deltas to the
// images that they are from.
func (r *remover) removeDeltasTo(ctx context.Context, to blob.Digest) error {
	if r.visited[to] {
		return nil
	}
	r.visited[to] = true
	names, err := listNames(ctx, r.dir, r.lister, to.String()+"/")
	if err != nil || len(names) == 0 {
		return err
	}
	for _, name := range append([]string{release.DeltaListName(to)}, names...) { // the list is removed first
		if err := r.remove(ctx, name); err != nil {
			return err
		}
	}
	for _, name := range names {
		if from, ok := baseOf(name); ok {
			if err := r.removeDeltasTo(ctx, from); err != nil {
				return err
			}
		}
	}
	return nil
}

// remove removes an object, which may be absent.
func (r *remover) remove(ctx context.Context, name string) error {
	err := r.remover.Remove(ctx, name)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil
	case err != nil:
		return fmt.Errorf("removing a delta: %w", err)
	}
	r.removed++
	return nil
}
