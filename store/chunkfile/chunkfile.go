// Package chunkfile decodes stored chunk files and encodes chunks. It reads zstd, xz and gzip and
// writes zstd. It knows no names, digests or stores, and does not verify the decoded bytes.
package chunkfile

import (
	"bytes"
	"errors"
	"fmt"
	"sync"

	"cairn/blob"
)

// The first bytes of compressed chunk files. They alone identify the codec, and a store may mix
// codecs.
const (
	zstdMagic = "\x28\xb5\x2f\xfd"
	xzMagic   = "\xfd7zXZ\x00"
	gzipMagic = "\x1f\x8b"
)

// ErrEmpty reports a compressed file of zero bytes.
var ErrEmpty = errors.New("it is empty")

var (
	errUnknownCodec = errors.New("it is neither zstd, xz nor gzip")
	errZeroSize     = errors.New("a chunk has at least one byte")
)

func sizeError(got, want int) error { return fmt.Errorf("it has %d bytes, not %d", got, want) }

// Limit returns the size in bytes above which a compressed file cannot be a chunk of the given
// size. Every codec stays below it for incompressible data. It is low enough that a lying store
// costs little memory.
func Limit(size int) int64 { return int64(size) + int64(size)/128 + 64<<10 }

// CheckPlain refuses a plain file of n bytes as a chunk of the given size; a size of 0 is unknown.
func CheckPlain(n, size int) error {
	if n == 0 || size > 0 && n != size {
		return sizeError(n, size)
	}
	return nil
}

// Decoder decodes compressed files. Safe for concurrent use; it decodes at most one zstd frame for
// each CPU at once.
type Decoder struct {
	zstd zstdDecoder
	gzip sync.Pool // of *gzip.Reader
}

// zstdDecoder decodes zstd frames; the build tag libzstd selects the implementation. Safe for concurrent use.
type zstdDecoder interface {
	// decode writes the frame's content to dst, which is not empty, and returns its size in bytes.
	// Content of more than len(dst) bytes is an error. Memory does not depend on the sizes that the
	// frame declares.
	decode(dst, frame []byte) (int, error)
}

// NewDecoder returns a Decoder, which keeps its working memory for reuse.
func NewDecoder() *Decoder { return &Decoder{zstd: newZstdDecoder()} }

// Decode fills dst with the chunk in file. Content of any other size than len(dst) is an error.
// Decode allocates little more than len(dst) bytes, whatever the file declares or holds.
// Unsupported features of a codec are errors.ErrUnsupported.
func (d *Decoder) Decode(dst, file []byte) error {
	switch {
	case bytes.HasPrefix(file, []byte(zstdMagic)):
		return d.decodeZstd(dst, file)
	case bytes.HasPrefix(file, []byte(xzMagic)):
		return decodeXZ(dst, file)
	case bytes.HasPrefix(file, []byte(gzipMagic)):
		return d.decodeGzip(dst, file)
	case len(file) == 0:
		return ErrEmpty
	}
	return errUnknownCodec
}

// DecodeInto returns the chunk in file, in the memory of buf if that is large enough. A size of 0
// is unknown; then the largest possible chunk bounds memory.
func (d *Decoder) DecodeInto(buf, file []byte, size int) ([]byte, error) {
	if size == 0 {
		declared, known, err := DeclaredSize(file)
		switch {
		case err != nil:
			return buf, err
		case !known:
			return d.decodeUnsizedZstd(buf, file)
		case declared == 0 || declared > blob.MaxChunkSize:
			return buf, fmt.Errorf("it declares %d bytes, which is not a valid chunk size", declared)
		}
		size = int(declared)
	}
	buf = resizeBuffer(buf, size)
	return buf, d.Decode(buf, file)
}

func resizeBuffer(p []byte, size int) []byte {
	if cap(p) < size {
		return make([]byte, size)
	}
	return p[:size]
}

// DeclaredSize returns the content size that a compressed file declares. Only zstd frames may omit
// it.
func DeclaredSize(file []byte) (size uint64, known bool, err error) {
	switch {
	case bytes.HasPrefix(file, []byte(zstdMagic)):
		return zstdSize(file)
	case bytes.HasPrefix(file, []byte(gzipMagic)) && len(file) >= 18:
		return gzipSize(file), true, nil
	case bytes.HasPrefix(file, []byte(xzMagic)):
		_, size, err := xzBlock(file)
		return size, true, err
	case len(file) == 0:
		return 0, false, ErrEmpty
	}
	return 0, false, errUnknownCodec
}
