package deltadir

import (
	"bytes"
	"context"
	"fmt"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"cairn/blob"
	"cairn/blob/delta"
)

// sampled is the number of payloads of a new delta that are decoded from its file. The encoder has decoded
// all of them before they were written there.
const sampled = 64

// checkFile decodes the file of a delta between two images, and a number of its payloads, spread over the
// image; a number below 0 is all. A defect of the file is a delta.ErrInvalid; any other error is about the
// old image.
func checkFile(ctx context.Context, file []byte, from *Image, to *blob.Index, payloads, workers int) (*delta.Delta, error) {
	d, err := delta.Decode(bytes.NewReader(file), to)
	switch {
	case err != nil:
		return nil, err
	case d.Old != from.Index.Digest() || d.OldSize != from.Index.Size():
		return nil, fmt.Errorf("%w: it is from the image of another index", delta.ErrInvalid)
	case d.FileSize() != int64(len(file)):
		return nil, fmt.Errorf("%w: it has %d bytes instead of %d", delta.ErrInvalid, len(file), d.FileSize())
	}
	if payloads < 0 || payloads > d.Len() {
		payloads = d.Len()
	}
	group, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range min(workers, payloads) {
		group.Go(func() error {
			decoder := delta.NewDecoder()
			defer decoder.Close()
			var chunk, reference []byte
			for n := int(next.Add(1)); n <= payloads; n = int(next.Add(1)) {
				if err := ctx.Err(); err != nil {
					return err
				}
				row := d.Row((n - 1) * d.Len() / payloads)
				if row.Kind != delta.Frame {
					continue
				}
				var err error
				if reference, err = delta.ReadReference(reference, from, row.Ranges); err != nil {
					return err
				}
				c := to.At(row.Chunk)
				chunk = append(chunk[:0], make([]byte, c.Size)...)
				if err := decoder.Decode(chunk, reference, file[row.Offset:row.Offset+row.Size]); err != nil {
					return err
				}
				if to.Algorithm().Sum(chunk) != c.Digest {
					return fmt.Errorf("%w: chunk %d decodes to other bytes than those of the image", delta.ErrInvalid, row.Chunk)
				}
			}
			return nil
		})
	}
	return d, group.Wait()
}
