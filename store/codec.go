package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/klauspost/compress/gzip"
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
type unpacker struct {
	zstd decoder
	gzip *sync.Pool // of *gzip.Reader
}

// decoder decodes zstd frames. Safe for concurrent use, and as wide as the machine. The build tag libzstd
// says which decoder it is.
type decoder interface {
	// decode writes what the frame holds to dst, which is not empty, and returns how much it is: at most
	// len(dst), or it fails. Its memory does not depend on what the frame claims.
	decode(dst, frame []byte) (int, error)
}

func newUnpacker() unpacker { return unpacker{newDecoder(), new(sync.Pool)} }

// unpack fills dst with the chunk that packed holds. A frame that holds more or less than len(dst) bytes is
// an error; whatever it claims or holds, it takes no more memory than about len(dst) again.
func (u unpacker) unpack(dst, packed []byte) error {
	switch {
	case bytes.HasPrefix(packed, []byte(zstdMagic)):
		return u.unzstd(dst, packed)
	case bytes.HasPrefix(packed, []byte(xzMagic)):
		return unxz(dst, packed)
	case bytes.HasPrefix(packed, []byte(gzipMagic)):
		return u.ungzip(dst, packed)
	case len(packed) == 0:
		return errEmpty
	}
	return errors.New("it is neither zstd, xz nor gzip")
}

var errEmpty = errors.New("it is empty")

// unzstd decodes exactly one frame, in place.
func (u unpacker) unzstd(dst, packed []byte) error {
	if len(dst) == 0 {
		return errors.New("no chunk is empty")
	}
	if err := oneFrame(packed); err != nil {
		return err
	}
	n, err := u.zstd.decode(dst, packed)
	if err != nil {
		return fmt.Errorf("decompressing: %w", err)
	}
	if n != len(dst) {
		return sizeError(n, len(dst))
	}
	return nil
}

// ungzip decodes exactly one member. The decoder's window is 32 KiB, whatever the member holds.
func (u unpacker) ungzip(dst, packed []byte) error {
	in := bytes.NewReader(packed)
	r, ok := u.gzip.Get().(*gzip.Reader)
	if !ok {
		r = new(gzip.Reader)
	}
	defer u.gzip.Put(r)
	if err := r.Reset(in); err != nil {
		return fmt.Errorf("decompressing: %w", err)
	}
	r.Multistream(false)
	n, err := io.ReadFull(r, dst)
	if err != nil {
		return fmt.Errorf("decompressing: %w (after %d of %d bytes)", err, n, len(dst))
	}
	switch n, err := r.Read(make([]byte, 1)); {
	case n > 0:
		return fmt.Errorf("it has more than %d bytes", len(dst))
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("decompressing: %w", err)
	case in.Len() > 0:
		return fmt.Errorf("%d bytes follow the compressed data", in.Len())
	}
	return nil
}

func sizeError(got, want int) error { return fmt.Errorf("it has %d bytes, not %d", got, want) }

// encoder makes zstd frames with the size of their content in the head and no checksum: the digest is one.
// Safe for concurrent use, and as wide as the machine. The build tag libzstd says which encoder it is.
type encoder interface {
	// encode returns the frame of data, in dst's memory if that is large enough.
	encode(dst, data []byte) ([]byte, error)
}

// packer makes frames that casync, desync and zstd read fastest: of one segment, and of raw blocks where
// nothing is to be gained. Safe for concurrent use.
type packer struct{ encoder encoder }

func newPacker(level int) (*packer, error) {
	if level == 0 {
		level = defaultLevel
	}
	if level < 1 || level > maxLevel {
		return nil, fmt.Errorf("compression level %d is not in 1 to %d", level, maxLevel)
	}
	e, err := newEncoder(level)
	if err != nil {
		return nil, fmt.Errorf("preparing compression: %w", err)
	}
	return &packer{e}, nil
}

// pack returns the frame of a chunk, in dst's memory if that is large enough.
func (p *packer) pack(dst, data []byte) ([]byte, error) {
	if incompressible(data) {
		return appendRawFrame(dst[:0], data), nil
	}
	packed, err := p.encoder.encode(dst, data)
	if err != nil {
		return nil, fmt.Errorf("compressing: %w", err)
	}
	return packed, nil
}

// Levels are those of the zstd tool; only libzstd tells all of them apart.
const (
	defaultLevel = 3
	maxLevel     = 22
)

// incompressible guesses from samples that data will not get smaller: their bytes are spread as evenly as
// chance spreads them. It misses some, and is wrong where noise repeats in a distance of 4 KiB or more.
func incompressible(data []byte) bool {
	const (
		windows, width = 16, 256
		samples        = windows * width
		// What the sum of the squared counts is in the mean when every byte is as likely as any other.
		even = samples + samples*(samples-1)/256
	)
	if len(data) < samples {
		return false
	}
	var counts [4][256]uint16 // four, so that equal neighbours do not wait for each other
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

// rawBlock is the largest block that zstd has.
const rawBlock = 128 << 10

// appendRawFrame appends a frame that holds data as it is (RFC 8878, 3.1.1): the head of a single segment
// with its size, then raw blocks. There is at least one byte of data, and less than 4 GiB.
func appendRawFrame(dst, data []byte) []byte {
	const last, blockHead = 1, 3 // a raw block is of type 0
	dst = appendRawHead(slices.Grow(dst, rawFrameSize(len(data))), len(data))
	for len(data) > 0 {
		block := data[:min(len(data), rawBlock)]
		data = data[len(block):]
		head := uint32(len(block)) << blockHead
		if len(data) == 0 {
			head |= last
		}
		dst = append(dst, byte(head), byte(head>>8), byte(head>>16))
		dst = append(dst, block...)
	}
	return dst
}

// appendRawHead appends the head of a frame of one segment: the size takes as few bytes as can be.
func appendRawHead(dst []byte, size int) []byte {
	const single, twoBytes, fourBytes = 1 << 5, 1 << 6, 2 << 6
	dst = append(dst, zstdMagic...)
	switch {
	case size < 1<<8:
		return append(dst, single, byte(size))
	case size < 1<<16+1<<8: // two bytes count from 256
		return binary.LittleEndian.AppendUint16(append(dst, single|twoBytes), uint16(size-1<<8))
	}
	return binary.LittleEndian.AppendUint32(append(dst, single|fourBytes), uint32(size))
}

// rawFrameSize bounds the size of a frame of raw blocks.
func rawFrameSize(size int) int {
	const head, blockHead = len(zstdMagic) + 1 + 4, 3
	return head + size + (size/rawBlock+1)*blockHead
}
