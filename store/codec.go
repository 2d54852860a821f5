package store

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"

	"cairn/blob"
)

// How compressed chunks begin. The codec is nowhere declared, and a store may mix them.
const (
	zstdMagic = "\x28\xb5\x2f\xfd"
	xzMagic   = "\xfd7zXZ\x00"
	gzipMagic = "\x1f\x8b"
)

// packedLimit bounds the compressed form of a chunk of size bytes: more than any of the codecs makes of
// incompressible data, and small enough that a lying store costs little memory.
func packedLimit(size int) int64 { return int64(size) + int64(size)/128 + 64<<10 }

// unpacker decompresses chunks. Safe for concurrent use, and as wide as the machine.
type unpacker struct{ zstd *zstd.Decoder }

func newUnpacker() unpacker {
	d, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(0),
		zstd.WithDecodeAllCapLimit(true),
		zstd.WithDecoderMaxWindow(blob.MaxChunkSize),
		zstd.WithDecoderMaxMemory(blob.MaxChunkSize))
	if err != nil {
		panic("store: zstd decoder options: " + err.Error())
	}
	return unpacker{d}
}

// unpack fills dst with the chunk that packed holds. A frame that holds more or less than len(dst) bytes is
// an error; whatever it claims or holds, it takes no more memory than about len(dst) again.
func (u unpacker) unpack(dst, packed []byte) error {
	switch {
	case bytes.HasPrefix(packed, []byte(zstdMagic)):
		return u.unzstd(dst, packed)
	case bytes.HasPrefix(packed, []byte(xzMagic)):
		return fmt.Errorf("xz compression is not supported yet: %w", errors.ErrUnsupported)
	case bytes.HasPrefix(packed, []byte(gzipMagic)):
		return fmt.Errorf("gzip compression is not supported yet: %w", errors.ErrUnsupported)
	case len(packed) == 0:
		return errors.New("it is empty")
	}
	return errors.New("it is neither zstd, xz nor gzip")
}

// unzstd decodes in place: the decoder uses its output as the window, and is held to its capacity.
func (u unpacker) unzstd(dst, packed []byte) error {
	out, err := u.zstd.DecodeAll(packed, dst[:0:len(dst)])
	if err != nil {
		return fmt.Errorf("decompressing: %w", err)
	}
	if len(out) != len(dst) {
		return sizeError(len(out), len(dst))
	}
	copy(dst, out) // a no-op unless the decoder moved its output
	return nil
}

func sizeError(got, want int) error { return fmt.Errorf("it has %d bytes, not %d", got, want) }

// newPacker makes an encoder whose frames casync, desync and zstd read fastest: one segment, its size in the
// head, and no checksum beside the digest. It may be shared, and is as wide as the machine.
func newPacker(level int) (*zstd.Encoder, error) {
	if level == 0 {
		level = defaultLevel
	}
	if level < 1 || level > maxLevel {
		return nil, fmt.Errorf("compression level %d is not in 1 to %d", level, maxLevel)
	}
	return zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(level)),
		zstd.WithEncoderCRC(false),
		zstd.WithSingleSegment(true),
		zstd.WithLowerEncoderMem(true),
		zstd.WithEncoderConcurrency(0))
}

// Levels are those of the zstd tool, each mapped to the nearest that the encoder has.
const (
	defaultLevel = 3
	maxLevel     = 22
)
