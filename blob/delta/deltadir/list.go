package deltadir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"cairn/blob"
	"cairn/blob/delta"
	"cairn/blob/release"
	"cairn/store"
)

// ReadList reads the list of the deltas to an image from a directory of deltas. Without a list there are
// none.
func ReadList(ctx context.Context, dir store.Reader, to *blob.Index) (bases []delta.Base, err error) {
	name := release.DeltaListName(to.Digest())
	err = store.Stream(ctx, dir, name, delta.MaxList, func(r io.Reader) error {
		data, err := io.ReadAll(r)
		if err == nil {
			bases, err = delta.DecodeList(data, to)
		}
		return err
	})
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil, nil
	case errors.Is(err, store.ErrTooLarge):
		err = fmt.Errorf("%w: %w", delta.ErrInvalid, err)
	}
	if err != nil {
		return nil, fmt.Errorf("the list of deltas %s in %v: %w", name, dir, err)
	}
	return bases, nil
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
