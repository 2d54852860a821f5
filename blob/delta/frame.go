package delta

import (
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// maxWindow is the largest window of a frame: it spans a reference and a chunk.
const maxWindow = MaxReference + MaxChunk

// Decoder decodes payloads. It keeps memory for the next one. A Decoder is not safe for concurrent use.
type Decoder struct{ zstd *zstd.Decoder }

// NewDecoder returns a Decoder. It takes no memory before the first payload.
func NewDecoder() *Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxWindow))
	if err != nil {
		panic("delta: zstd decoder options: " + err.Error())
	}
	return &Decoder{d}
}

// Close releases the decoder's memory.
func (d *Decoder) Close() { d.zstd.Close() }

// Decode decodes a payload of kind Frame into dst, which has the size of the chunk. reference has the
// bytes of the row's ranges. Decode cannot know whether they are those of the old image: the caller must
// hash dst.
func (d *Decoder) Decode(dst, reference, payload []byte) error {
	if err := checkFrame(payload, len(dst)); err != nil {
		return err
	}
	// A raw dictionary has the id 0, and the frame has none. It is not parsed, whatever bytes it begins with.
	if err := d.zstd.ResetWithOptions(nil, zstd.WithDecoderDictRaw(0, reference)); err != nil {
		return fmt.Errorf("decoding a chunk of a delta: %w", err)
	}
	out, err := d.zstd.DecodeAll(payload, dst[:0:len(dst)])
	switch {
	case err != nil:
		return fmt.Errorf("%w: a chunk of it: %w", ErrInvalid, err)
	case len(out) != len(dst):
		return fmt.Errorf("%w: a chunk of it has %d bytes instead of %d", ErrInvalid, len(out), len(dst))
	}
	copy(dst, out) // nothing is copied unless the decoder moved its output
	return nil
}

// checkFrame checks the header of a payload for a chunk of a size.
func checkFrame(payload []byte, size int) error {
	var h zstd.Header
	switch err := h.Decode(payload); {
	case err != nil:
		return fmt.Errorf("%w: a payload is not a zstd frame: %w", ErrInvalid, err)
	case h.Skippable || h.DictionaryID != 0:
		return fmt.Errorf("%w: a payload is a skippable frame, or has the id of a dictionary", ErrInvalid)
	case h.HasFCS && h.FrameContentSize != uint64(size):
		return fmt.Errorf("%w: a payload for %d bytes instead of %d", ErrInvalid, h.FrameContentSize, size)
	case h.WindowSize > maxWindow:
		return fmt.Errorf("%w: a payload with a window of %d bytes, and %d are the limit", ErrInvalid, h.WindowSize, maxWindow)
	}
	return nil
}
