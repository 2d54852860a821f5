package chunkfile

import "fmt"

// Compression levels are those of the zstd tool; only libzstd distinguishes all of them.
const (
	defaultLevel = 3
	maxLevel     = 22
)

// Encoder encodes chunks as zstd frames in the form that casync, desync and zstd decode fastest:
// one segment, and raw blocks for incompressible data. Safe for concurrent use; it compresses at
// most one frame for each CPU at once.
type Encoder struct{ zstd zstdEncoder }

// zstdEncoder makes zstd frames with the content size in the header. They have no checksum, since
// the chunk's digest serves as one. The build tag libzstd selects the implementation. Safe for
// concurrent use.
type zstdEncoder interface {
	// encode returns the frame of data, in dst's memory if that is large enough.
	encode(dst, data []byte) ([]byte, error)
}

// NewEncoder returns an Encoder for a compression level of 1 to 22; 0 is 3.
func NewEncoder(level int) (*Encoder, error) {
	if level == 0 {
		level = defaultLevel
	}
	if level < 1 || level > maxLevel {
		return nil, fmt.Errorf("compression level %d is not in 1 to %d", level, maxLevel)
	}
	e, err := newZstdEncoder(level)
	if err != nil {
		return nil, fmt.Errorf("preparing compression: %w", err)
	}
	return &Encoder{e}, nil
}

// Encode returns the compressed file of a chunk, in dst's memory if that is large enough.
func (e *Encoder) Encode(dst, chunk []byte) ([]byte, error) {
	if isIncompressible(chunk) {
		return appendRawFrame(dst[:0], chunk), nil
	}
	file, err := e.zstd.encode(dst, chunk)
	if err != nil {
		return nil, fmt.Errorf("compressing: %w", err)
	}
	return file, nil
}

// isIncompressible reports whether the bytes of a few samples are distributed as evenly as random
// bytes, which suggests that data does not compress. It misses some incompressible data. It is
// wrong where noise repeats at a distance of 4 KiB or more.
func isIncompressible(data []byte) bool {
	const (
		windows, width = 16, 256
		samples        = windows * width
		// The expected sum of the squared counts when all bytes are equally likely.
		even = samples + samples*(samples-1)/256
	)
	if len(data) < samples {
		return false
	}
	var counts [4][256]uint16 // four, so that increments for equal neighbours are independent of each other
	for w := range windows {
		at := w * (len(data) - width) / (windows - 1)
		for s := data[at : at+width]; len(s) >= 4; s = s[4:] {
			counts[0][s[0]]++
			counts[1][s[1]]++
			counts[2][s[2]]++
			counts[3][s[3]]++
		}
	}
	sum := 0
	for b := range 256 {
		n := int(counts[0][b]) + int(counts[1][b]) + int(counts[2][b]) + int(counts[3][b])
		sum += n * n
	}
	return sum < even+even/20
}
