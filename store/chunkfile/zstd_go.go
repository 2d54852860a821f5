//go:build !libzstd

package chunkfile

import (
	"github.com/klauspost/compress/zstd"

	"cairn/blob"
)

// goEncoder compresses in Go. It maps each level to the nearest level of the Go encoder.
type goEncoder struct{ zstd *zstd.Encoder }

func newZstdEncoder(level int) (zstdEncoder, error) {
	e, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(level)),
		zstd.WithEncoderCRC(false),
		zstd.WithSingleSegment(true),
		zstd.WithLowerEncoderMem(true),
		zstd.WithWindowSize(goWindow),
		zstd.WithEncoderConcurrency(0))
	return goEncoder{e}, err
}

// goWindow is the window size of libzstd's default level. The Go encoder's default of 4 to 32 MiB
// for each goroutine is memory that a chunk of usual size does not use.
const goWindow = 2 << 20

func (e goEncoder) encode(dst, data []byte) ([]byte, error) {
	return e.zstd.EncodeAll(data, dst[:0]), nil
}

// goDecoder decompresses in Go.
type goDecoder struct{ zstd *zstd.Decoder }

func newZstdDecoder() zstdDecoder {
	d, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(0),
		zstd.WithDecodeAllCapLimit(true),
		zstd.WithDecoderMaxWindow(blob.MaxChunkSize),
		zstd.WithDecoderMaxMemory(blob.MaxChunkSize))
	if err != nil {
		panic("chunkfile: zstd decoder options: " + err.Error())
	}
	return goDecoder{d}
}

// decode uses dst as the window, and limits the decoder to its size.
func (d goDecoder) decode(dst, frame []byte) (int, error) {
	out, err := d.zstd.DecodeAll(frame, dst[:0:len(dst)])
	if err != nil {
		return 0, err
	}
	return copy(dst, out), nil // nothing is copied unless the decoder moved its output
}
