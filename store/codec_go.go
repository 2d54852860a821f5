//go:build !libzstd

package store

import (
	"github.com/klauspost/compress/zstd"

	"cairn/blob"
)

// goEncoder compresses in Go. Each level is mapped to the nearest that the encoder has.
type goEncoder struct{ zstd *zstd.Encoder }

func newEncoder(level int) (encoder, error) {
	e, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(level)),
		zstd.WithEncoderCRC(false),
		zstd.WithSingleSegment(true),
		zstd.WithLowerEncoderMem(true),
		zstd.WithWindowSize(goWindow),
		zstd.WithEncoderConcurrency(0))
	return goEncoder{e}, err
}

// goWindow is libzstd's at its default level. The encoder's own, 4 to 32 MiB for each that runs, would be
// memory that a chunk of usual size has no use for.
const goWindow = 2 << 20

func (e goEncoder) encode(dst, data []byte) ([]byte, error) {
	return e.zstd.EncodeAll(data, dst[:0]), nil
}

// goDecoder decompresses in Go.
type goDecoder struct{ zstd *zstd.Decoder }

func newDecoder() decoder {
	d, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(0),
		zstd.WithDecodeAllCapLimit(true),
		zstd.WithDecoderMaxWindow(blob.MaxChunkSize),
		zstd.WithDecoderMaxMemory(blob.MaxChunkSize))
	if err != nil {
		panic("store: zstd decoder options: " + err.Error())
	}
	return goDecoder{d}
}

// decode uses dst as the window, and the decoder is held to its capacity.
func (d goDecoder) decode(dst, frame []byte) (int, error) {
	out, err := d.zstd.DecodeAll(frame, dst[:0:len(dst)])
	if err != nil {
		return 0, err
	}
	return copy(dst, out), nil // nothing is copied unless the decoder moved its output
}
