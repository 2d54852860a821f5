package deltadir

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"cairn/blob"
	"cairn/blob/delta"
	"cairn/blob/release"
	"cairn/store"
)

// ReadList is release.ReadDeltaList. Without a list there are no deltas.
func ReadList(ctx context.Context, dir store.Reader, to *blob.Index) ([]delta.Base, error) {
	bases, err := release.ReadDeltaList(ctx, dir, to)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	return bases, err
}

// writeList replaces the list of the deltas to an image.
func writeList(ctx context.Context, dir store.Bucket, to *blob.Index, bases []delta.Base) error {
	if err := dir.Write(ctx, release.DeltaListName(to.Digest()), delta.EncodeList(to, bases)); err != nil {
		return fmt.Errorf("writing the list of deltas: %w", err)
	}
	return nil
}

// addToList adds a delta whose files are durable to the list of the deltas to an image. The newest base is
// first; one that is on the list keeps its place. A full list loses its oldest base.
func addToList(ctx context.Context, dir store.Bucket, to *blob.Index, base delta.Base) error {
	bases, err := ReadList(ctx, dir, to)
	if err != nil {
		return err
	}
	switch i := slices.IndexFunc(bases, func(b delta.Base) bool { return b.Index == base.Index }); {
	case i < 0:
		bases = slices.Insert(bases, 0, base)
	case bases[i].FileSize == base.FileSize:
		return nil
	default:
		bases[i] = base
	}
	return writeList(ctx, dir, to, bases[:min(len(bases), delta.MaxBases)])
}

func listNames(ctx context.Context, dir store.Reader, l store.Lister, prefix string) (names []string, err error) {
	for o, err := range l.List(ctx, prefix) {
		if err != nil {
			return nil, fmt.Errorf("listing the deltas in %v: %w", dir, err)
		}
		names = append(names, o.Name)
	}
	return names, nil
}

// baseOf returns the old image of the delta with a name.
func baseOf(name string) (blob.Digest, bool) {
	text, is := strings.CutSuffix(path.Base(name), delta.Suffix)
	d, err := blob.ParseDigest(text)
	return d, is && err == nil
}
