//go:build !libzstd

package store

import "github.com/klauspost/compress/zstd"

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
