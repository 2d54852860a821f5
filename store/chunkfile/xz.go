package chunkfile

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"
	"slices"

	"github.com/ulikunitz/xz/lzma"

	"cairn/blob"
)

// unxz decodes the one xz stream that packed holds (The .xz File Format 1.0.4) into dst. The container is read
// here, since the dictionary is: a header may claim 4 GiB of it, which xz.Reader would allocate, while a block
// of n bytes never looks back further than n. So a block takes its own size again and some 100 KiB.
func unxz(dst, packed []byte) error {
	p := xzParser{rest: packed}
	check, err := p.streamHeader()
	if err != nil {
		return fmt.Errorf("xz: %w", err)
	}
	done := 0
	for err == nil && len(p.rest) > 0 && p.rest[0] != 0 {
		var n int
		n, err = p.block(dst[done:], check)
		done += n
	}
	if err == nil {
		err = p.tail(check)
	}
	if err != nil {
		return fmt.Errorf("xz: %w", err)
	}
	if done != len(dst) {
		return sizeError(done, len(dst))
	}
	return nil
}

// xzParser takes an xz stream apart from its front.
type xzParser struct {
	rest   []byte
	blocks []xzRecord // what the index has to say
}

// xzRecord is what the index says of a block.
type xzRecord struct{ unpadded, uncompressed uint64 }

var (
	errXZShort   = errors.New("it ends too early")
	errXZDamaged = errors.New("its structure is damaged")
	errXZLarge   = errors.New("it holds more than it should")
)

// take is the next n bytes.
func (p *xzParser) take(n int) ([]byte, error) {
	if n > len(p.rest) {
		return nil, errXZShort
	}
	taken := p.rest[:n]
	p.rest = p.rest[n:]
	return taken, nil
}

// number is the next variable-length integer, in its one spelling: nine bytes of seven bits at most.
func (p *xzParser) number() (uint64, error) {
	const longest = 9
	n, size := binary.Uvarint(p.rest[:min(len(p.rest), longest)])
	if size <= 0 || size > 1 && p.rest[size-1] == 0 {
		return 0, errXZDamaged
	}
	p.rest = p.rest[size:]
	return n, nil
}

// proven is the next n bytes, which their CRC32 follows.
func (p *xzParser) proven(n int) ([]byte, error) {
	data, err := p.take(n)
	if err != nil {
		return nil, err
	}
	sum, err := p.take(crc32.Size)
	if err != nil {
		return nil, err
	}
	if binary.LittleEndian.Uint32(sum) != crc32.ChecksumIEEE(data) {
		return nil, errXZDamaged
	}
	return data, nil
}

// xzCheck is how a stream proves what its blocks hold.
type xzCheck byte

const (
	xzNone   xzCheck = 0
	xzCRC32  xzCheck = 1
	xzCRC64  xzCheck = 4
	xzSHA256 xzCheck = 10
)

// new is nil for no check at all.
func (c xzCheck) new() (hash.Hash, error) {
	switch c {
	case xzNone:
		return nil, nil
	case xzCRC32:
		return crc32.NewIEEE(), nil
	case xzCRC64:
		return crc64.New(crc64.MakeTable(crc64.ECMA)), nil
	case xzSHA256:
		return sha256.New(), nil
	}
	return nil, fmt.Errorf("%w: check %d", errors.ErrUnsupported, c)
}

func (p *xzParser) streamHeader() (xzCheck, error) {
	if _, err := p.take(len(xzMagic)); err != nil {
		return 0, err
	}
	flags, err := p.proven(2)
	if err != nil {
		return 0, err
	}
	if flags[0] != 0 || flags[1] > 0xf {
		return 0, errXZDamaged
	}
	return xzCheck(flags[1]), nil
}

// block decodes the next block to the front of dst, and returns how much it holds.
func (p *xzParser) block(dst []byte, check xzCheck) (int, error) {
	start := len(p.rest)
	head, err := p.blockHeader()
	if err != nil {
		return 0, err
	}
	packed, uncompressed, err := splitLZMA2(p.rest)
	if err != nil {
		return 0, err
	}
	p.rest = p.rest[len(packed):]
	if head.compressed != nil && *head.compressed != uint64(len(packed)) ||
		head.uncompressed != nil && *head.uncompressed != uint64(uncompressed) {
		return 0, errXZDamaged
	}
	if uncompressed > len(dst) {
		return 0, errXZLarge
	}
	dst = dst[:uncompressed]
	if err := unlzma2(dst, packed, head.dictionary); err != nil {
		return 0, err
	}
	unpadded, err := p.blockEnd(start, dst, check)
	p.blocks = append(p.blocks, xzRecord{unpadded, uint64(uncompressed)})
	return uncompressed, err
}

// xzBlockHeader is what a block says of itself; sizes may be left out.
type xzBlockHeader struct {
	compressed, uncompressed *uint64
	dictionary               int64
}

func (p *xzParser) blockHeader() (h xzBlockHeader, err error) {
	const hasCompressed, hasUncompressed = 1 << 6, 1 << 7
	if len(p.rest) == 0 {
		return h, errXZShort
	}
	raw, err := p.proven(int(p.rest[0]) * 4)
	if err != nil {
		return h, err
	}
	flags := raw[1]
	if flags&^(hasCompressed|hasUncompressed) != 0 {
		return h, fmt.Errorf("%w: filters other than LZMA2", errors.ErrUnsupported)
	}
	in := xzParser{rest: raw[2:]}
	if h.compressed, err = in.optional(flags&hasCompressed != 0); err != nil {
		return h, err
	}
	if h.uncompressed, err = in.optional(flags&hasUncompressed != 0); err != nil {
		return h, err
	}
	h.dictionary, err = in.lzma2Filter()
	if err == nil && len(bytes.Trim(in.rest, "\x00")) > 0 {
		err = errXZDamaged
	}
	return h, err
}

// optional is the next number if it is there.
func (p *xzParser) optional(there bool) (*uint64, error) {
	if !there {
		return nil, nil
	}
	n, err := p.number()
	return &n, err
}

// lzma2Filter is the size of the dictionary that a block says it needs.
func (p *xzParser) lzma2Filter() (dictionary int64, err error) {
	const lzma2, largest = 0x21, 40
	id, err := p.number()
	if err != nil {
		return 0, err
	}
	if id != lzma2 {
		return 0, fmt.Errorf("%w: filter %#x", errors.ErrUnsupported, id)
	}
	properties, err := p.take(2)
	if err != nil {
		return 0, err
	}
	switch size, bits := properties[0], properties[1]; {
	case size != 1 || bits > largest:
		return 0, errXZDamaged
	case bits == largest:
		return 1<<32 - 1, nil
	default:
		return int64(2|bits&1) << (bits/2 + 11), nil
	}
}

// splitLZMA2 walks over the LZMA2 data that begins b, up to its end marker, and says how much it makes.
func splitLZMA2(b []byte) (packed []byte, uncompressed int, err error) {
	const (
		coded      = 0x80 // beside the size's high bits; less is bytes as they are
		properties = 0xc0
		head       = 3
	)
	for at := 0; ; {
		if at >= len(b) {
			return nil, 0, errXZShort
		}
		control := b[at]
		if control == 0 {
			return b[:at+1], uncompressed, nil
		}
		if len(b)-at < head+2 {
			return nil, 0, errXZShort
		}
		size := int(binary.BigEndian.Uint16(b[at+1:])) + 1
		next := head + size
		if control >= coded {
			size += int(control&0x1f) << 16
			next = head + 2 + int(binary.BigEndian.Uint16(b[at+head:])) + 1
		}
		if control >= properties {
			next++
		}
		if uncompressed += size; uncompressed > blob.MaxChunkSize { // on some machines an int has not much more
			return nil, 0, errXZLarge
		}
		at += next
	}
}

// unlzma2 fills dst with what packed makes. It takes a dictionary no larger than dst, or the least there is.
func unlzma2(dst, packed []byte, dictionary int64) error {
	config := lzma.Reader2Config{DictCap: int(max(lzma.MinDictCap, min(dictionary, int64(len(dst)))))}
	in := bytes.NewReader(packed)
	r, err := config.NewReader2(in)
	if err != nil {
		return err
	}
	if _, err := io.ReadFull(r, dst); err != nil {
		return fmt.Errorf("decompressing: %w", err)
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) || in.Len() > 0 {
		return errXZDamaged
	}
	return nil
}

// blockEnd checks the padding and the check behind a block, which began when start bytes were left.
func (p *xzParser) blockEnd(start int, data []byte, check xzCheck) (unpadded uint64, err error) {
	sum, err := check.new()
	if err != nil {
		return 0, err
	}
	taken := start - len(p.rest)
	padding, err := p.take(-taken & 3)
	if err != nil {
		return 0, err
	}
	if len(bytes.Trim(padding, "\x00")) > 0 {
		return 0, errXZDamaged
	}
	if sum == nil {
		return uint64(taken), nil
	}
	stored, err := p.take(sum.Size())
	if err != nil {
		return 0, err
	}
	sum.Write(data)
	want := sum.Sum(nil)
	if check != xzSHA256 {
		slices.Reverse(want) // CRCs are stored with their least byte first
	}
	if !bytes.Equal(stored, want) {
		return 0, errors.New("its check does not match")
	}
	return uint64(taken + len(stored)), nil
}

// tail checks the index and the footer, which end the stream, and that nothing follows them.
func (p *xzParser) tail(check xzCheck) error {
	const indexMark, footerMagic, footerSize = 0, "YZ", 4 + 4 + 2 + 2
	size := len(p.rest) - footerSize
	if size < 8 || size%4 != 0 {
		return errXZShort
	}
	index, err := p.proven(size - crc32.Size)
	if err != nil {
		return err
	}
	in := xzParser{rest: index[1:]}
	if err := in.index(p.blocks); err != nil {
		return err
	}
	if index[0] != indexMark || len(in.rest) > 3 || len(bytes.Trim(in.rest, "\x00")) > 0 {
		return errXZDamaged
	}
	footer := p.rest
	want := binary.LittleEndian.AppendUint32(nil, uint32(size/4-1))
	want = append(want, 0, byte(check))
	want = append(binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(want)), want...)
	if !bytes.Equal(footer, append(want, footerMagic...)) {
		return errXZDamaged
	}
	return nil
}

// index checks that the index tells of these blocks.
func (p *xzParser) index(blocks []xzRecord) error {
	count, err := p.number()
	if err != nil || count != uint64(len(blocks)) {
		return errXZDamaged
	}
	for _, want := range blocks {
		unpadded, err1 := p.number()
		uncompressed, err2 := p.number()
		if err1 != nil || err2 != nil || (xzRecord{unpadded, uncompressed}) != want {
			return errXZDamaged
		}
	}
	return nil
}

// xzSize adds up what the index at the end of an xz stream says of its blocks (The .xz File Format, 2.1.2 and 4).
func xzSize(packed []byte) (size uint64, ok bool) {
	const footer = 12
	if len(packed) < 2*footer || !bytes.HasSuffix(packed, []byte("YZ")) {
		return 0, false
	}
	end := len(packed) - footer
	length := 4 * (int64(binary.LittleEndian.Uint32(packed[end+4:])) + 1)
	if length > int64(end) {
		return 0, false
	}
	index := bytes.NewReader(packed[int64(end)-length : end])
	mark, _ := index.ReadByte()
	blocks, err := binary.ReadUvarint(index)
	for ok = mark == 0 && err == nil; ok && blocks > 0; blocks-- {
		_, err1 := binary.ReadUvarint(index) // as compressed
		n, err2 := binary.ReadUvarint(index)
		ok = err1 == nil && err2 == nil && n <= blob.MaxChunkSize
		size += n
	}
	return size, ok
}
