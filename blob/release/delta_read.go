package release

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"cairn/blob"
	"cairn/blob/delta"
	"cairn/store"
)

// ReadDeltaList reads the list of the deltas to the image of an index from a directory of deltas: the old
// images, the newest first. Absence is store.ErrNotFound, a damaged list is delta.ErrInvalid.
func ReadDeltaList(ctx context.Context, dir store.Reader, to *blob.Index) (bases []delta.Base, err error) {
	name := DeltaListName(to.Digest())
	err = store.Stream(ctx, dir, name, delta.MaxList, func(r io.Reader) error {
		data, err := io.ReadAll(r)
		if err == nil {
			bases, err = delta.DecodeList(data, to)
		}
		return err
	})
	if errors.Is(err, store.ErrTooLarge) {
		err = fmt.Errorf("%w: %w", delta.ErrInvalid, err)
	}
	if err != nil {
		return nil, fmt.Errorf("the list of deltas %s in %v: %w", name, dir, err)
	}
	return bases, nil
}

// ReadDeltaIndex reads the copy of an index that lies beside the deltas to an image. Both are named by the
// digests of their indexes. An index of more than chunks chunks is refused before they take memory.
func ReadDeltaIndex(ctx context.Context, dir store.Reader, to, digest blob.Digest, chunks int) (x *blob.Index, err error) {
	name, limit := DeltaIndexName(to, digest), 104+40*int64(chunks)
	err = store.StreamRange(ctx, dir, name, 0, limit, func(_ store.Part, r io.Reader) error {
		x, err = blob.Decode(bufio.NewReaderSize(io.LimitReader(r, limit), 1<<16))
		return err
	})
	if err == nil && x.Digest() != digest {
		err = fmt.Errorf("%w: it has another digest than its name", blob.ErrInvalid)
	}
	if err != nil {
		return nil, fmt.Errorf("the index %s in %v: %w", name, dir, err)
	}
	return x, nil
}
