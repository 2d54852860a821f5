package delta

import (
	"github.com/klauspost/compress/zstd"
)

// frameEncoder encodes chunks as payloads of kind Frame. It keeps its tables for the next chunk. It is
// not safe for concurrent use. The same chunk and reference give the same payload.
type frameEncoder struct{ zstd *zstd.Encoder }

func newFrameEncoder(level zstd.EncoderLevel) (*frameEncoder, error) {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false),
		zstd.WithWindowSize(maxWindow), zstd.WithSingleSegment(true), zstd.WithLowerEncoderMem(true))
	return &frameEncoder{z}, err
}

// encode appends the payload of a chunk to dst. The frame is a single segment, so that a reference is in
// its window as a whole.
func (e *frameEncoder) encode(dst, reference, chunk []byte) ([]byte, error) {
	option := zstd.WithEncoderDictDelete()
	if len(reference) > 0 {
		option = zstd.WithEncoderDictRaw(0, reference)
	}
	if err := e.zstd.ResetWithOptions(nil, option); err != nil {
		return nil, err
	}
	return e.zstd.EncodeAll(chunk, dst), nil
}
