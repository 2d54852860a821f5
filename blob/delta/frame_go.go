//go:build !libzstd

package delta

import "github.com/klauspost/compress/zstd"

// frameEncoder encodes chunks as payloads of kind Frame. It keeps its tables for the next chunk. It is not safe for
// concurrent use. The same chunk and reference give the same payload.
type frameEncoder struct {
	small, large *zstd.Encoder // by the size of the chunk; nil before the first use
}

// smallChunk is the size of the largest chunk that is encoded with smaller tables. Clearing the large ones, which take
// 64 MiB, takes as long as encoding such a chunk.
const smallChunk = 16 << 10

func newFrameEncoder() (*frameEncoder, error) { return &frameEncoder{}, nil }

// encode appends the payload of a chunk to dst. The frame is a single segment, so that a reference is in its window as
// a whole.
func (e *frameEncoder) encode(dst, reference, chunk []byte) (payload []byte, err error) {
	z, level := &e.large, zstd.SpeedBestCompression
	if len(chunk) <= smallChunk {
		z, level = &e.small, zstd.SpeedBetterCompression
	}
	if *z == nil {
		*z, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1),
			zstd.WithEncoderCRC(false), zstd.WithWindowSize(maxWindow), zstd.WithSingleSegment(true),
			zstd.WithLowerEncoderMem(true))
		if err != nil {
			return nil, err
		}
	}
	dictionary := zstd.WithEncoderDictDelete()
	if len(reference) > 0 {
		dictionary = zstd.WithEncoderDictRaw(0, reference)
	}
	if err := (*z).ResetWithOptions(nil, dictionary); err != nil {
		return nil, err
	}
	return (*z).EncodeAll(chunk, dst), nil
}
