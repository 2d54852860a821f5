package apply

import (
	"context"
	"io"
	"runtime"

	"cairn/blob/delta"
)

// Decoders is the memory for decoding chunks, one for each CPU, at most 8. Safe for concurrent use.
type Decoders struct{ free chan *decoder }

// decoder is the memory for decoding one chunk.
type decoder struct {
	zstd      *delta.Decoder
	reference []byte
}

// NewDecoders returns Decoders, which take no memory before they are used.
func NewDecoders() *Decoders {
	d := &Decoders{make(chan *decoder, min(runtime.GOMAXPROCS(0), 8))}
	for range cap(d.free) {
		d.free <- &decoder{zstd: delta.NewDecoder()}
	}
	return d
}

// Len returns how many chunks can be decoded at once.
func (d *Decoders) Len() int { return cap(d.free) }

// decode decodes the payload of a row into dst, with the bytes of the old image. The caller must hash dst.
func (d *Decoders) decode(ctx context.Context, dst []byte, row delta.Row, payload []byte, old io.ReaderAt) error {
	var one *decoder
	select {
	case one = <-d.free:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { d.free <- one }()
	var err error
	if one.reference, err = delta.ReadReference(one.reference, old, row.Ranges); err != nil {
		return err
	}
	return one.zstd.Decode(dst, one.reference, payload)
}

// Close releases the memory. No chunk may be decoded any more.
func (d *Decoders) Close() {
	for range cap(d.free) {
		(<-d.free).zstd.Close()
	}
}
