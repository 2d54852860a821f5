package ingest

import (
	"cmp"
	"context"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"cairn/blob"
	"cairn/blob/scan"
)

// MismatchError reports that an image is not that of an index.
type MismatchError struct{ Chunk blob.Chunk } // the chunk of the index whose bytes differ

func (e *MismatchError) Error() string {
	return fmt.Sprintf("the image is not that of the index: %d bytes at %d differ", e.Chunk.Size, e.Chunk.Offset)
}

// Add stores those chunks of the image of x that dst lacks. It reads no other chunks. Each is hashed before it is stored;
// another digest is a *MismatchError. When Add returns nil, all chunks of x are durable in dst. The options Algorithm and
// Params are not used.
func Add(ctx context.Context, x *blob.Index, image io.ReaderAt, dst Store, o Options) (Stats, error) {
	a := &adder{putter: putter{dst: dst}, algorithm: x.Algorithm(), image: image, room: semaphore.NewWeighted(relayBytes)}
	table := blob.NewTable(x)
	var begun scan.Stats // counts the chunks that were begun
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(max(o.Workers, o.AtOnce, 1))
	for i, c := range x.All() {
		if groupCtx.Err() != nil {
			break
		}
		begun.Chunks, begun.Size = i+1, c.End()
		if x.IsZero(i) {
			begun.Zeros += c.Size
		}
		if table.Find(c.Digest) == i {
			begun.Distinct++
			group.Go(func() error {
				if err := a.addChunk(groupCtx, c); err != nil {
					return fmt.Errorf("chunk %v of the image's bytes at %d: %w", c.Digest, c.Offset, err)
				}
				return nil
			})
		}
		if o.Progress != nil {
			o.Progress(a.stats(begun))
		}
	}
	if err := cmp.Or(group.Wait(), ctx.Err()); err != nil {
		return Stats{}, err
	}
	if err := dst.Commit(ctx); err != nil {
		return Stats{}, fmt.Errorf("making the chunks durable: %w", err)
	}
	return a.stats(begun), ctx.Err()
}

// adder stores chunks of an image at their places in an index.
type adder struct {
	putter
	algorithm blob.Algorithm
	image     io.ReaderAt
	room      *semaphore.Weighted // in bytes
}

func (a *adder) addChunk(ctx context.Context, c blob.Chunk) error {
	if has, err := a.dst.Has(ctx, c.Digest); has || err != nil {
		return err
	}
	room := min(c.Size, relayBytes)
	if err := a.room.Acquire(ctx, room); err != nil {
		return err
	}
	defer a.room.Release(room)
	data := make([]byte, c.Size)
	if n, err := a.image.ReadAt(data, c.Offset); n < len(data) {
		return err
	}
	if a.algorithm.Sum(data) != c.Digest {
		return &MismatchError{c}
	}
	return a.putChunk(ctx, c, data)
}
