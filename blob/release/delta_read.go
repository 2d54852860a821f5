package release

import (
	"bytes"
	"context"
	"fmt"

	"cairn/blob"
	"cairn/blob/delta"
	"cairn/store"
)

// ReadDeltaList returns the old images from which there are deltas to the image of x, in a directory of
// deltas. Absence is store.ErrNotFound.
func ReadDeltaList(ctx context.Context, dir store.Reader, x *blob.Index) ([]delta.Base, error) {
	b, err := dir.Read(ctx, DeltaListName(x.Digest()), nil, delta.MaxList)
	if err != nil {
		return nil, err
	}
	return delta.DecodeList(b, x)
}

// ReadDeltaIndex returns the index of an old image from a directory of deltas, where it lies beside the
// delta to the image of x.
func ReadDeltaIndex(ctx context.Context, dir store.Reader, x *blob.Index, old delta.Base) (*blob.Index, error) {
	name := DeltaIndexName(x.Digest(), old.Index)
	b, err := dir.Read(ctx, name, nil, maxIndexSize)
	if err != nil {
		return nil, err
	}
	held, err := blob.Decode(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("reading %v/%s: %w", dir, name, err)
	}
	if held.Digest() != old.Index || held.Size() != old.ImageSize {
		return nil, fmt.Errorf("reading %v/%s: %w: it is the index of another image", dir, name, blob.ErrInvalid)
	}
	return held, nil
}
