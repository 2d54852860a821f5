package blob

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"io"
)

// The layout of a .caibx file, all integers little-endian (docs/format.md has the offset tables):
// a 64-byte head, 40 bytes a chunk, a 40-byte tail.
const (
	headSize = 64
	rowSize  = 40

	typeEntry  = 0x1396fabcea5bbb51 // of the first object in a .catar archive
	typeIndex  = 0x96824d9c7b129ff9
	typeTable  = 0xe75b9e112f17417d
	tailMarker = 0x4b4f050e5549ecd1
	indexSize  = 48                 // of the first object in the head; also the table's offset
	unsized    = 0xffffffffffffffff // the table states its size only in its tail

	// Only bit 61 of the feature flags describes an image. The other flags are casync's archive metadata:
	// a new index has casync's defaults, and a decoded index keeps its own.
	flagSHA512    = 1 << 61
	flagsWith     = 1<<33 - 1 // bits 0 to 32: the file metadata in an archive
	flagsSHA512   = 0xb000000000000000
	flagsSHA256   = 0x9000000000000000
	flagsReserved = (1<<60 - 1) &^ (1<<33 - 1) // bits 33 to 59: unknown to every casync
)

// EncodedSize returns the length of the index file in bytes: 104 + 40 per chunk.
func (x *Index) EncodedSize() int64 { return headSize + rowSize*int64(x.n+1) }

// WriteTo writes the index as a .caibx file. Decoding the file gives an equal index, and encoding a
// decoded index gives the same bytes.
func (x *Index) WriteTo(w io.Writer) (int64, error) {
	p := make([]byte, 0, 64<<10)
	u64 := func(vs ...uint64) {
		for _, v := range vs {
			p = binary.LittleEndian.AppendUint64(p, v)
		}
	}
	var written int64
	flush := func() error {
		n, err := w.Write(p)
		written += int64(n)
		p = p[:0]
		return err
	}
	u64(indexSize, typeIndex, x.flags, uint64(x.params.Min), uint64(x.params.Avg), uint64(x.params.Max), unsized, typeTable)
	for i := range x.n {
		r := x.row(i)
		u64(uint64(r.end))
		p = append(p, r.digest[:]...)
		if len(p)+2*rowSize > cap(p) {
			if err := flush(); err != nil {
				return written, err
			}
		}
	}
	u64(0, 0, indexSize, uint64(x.EncodedSize()-indexSize), tailMarker)
	return written, flush()
}

// Encode returns the index as the bytes of a .caibx file.
func (x *Index) Encode() []byte {
	var b bytes.Buffer
	b.Grow(int(x.EncodedSize()))
	_, _ = x.WriteTo(&b) // a bytes.Buffer does not fail
	return b.Bytes()
}

// Digest returns the SHA-512/256 of the index file. Exports and journals are bound to it.
func (x *Index) Digest() Digest {
	h := sha512.New512_256()
	_, _ = x.WriteTo(h) // a hash does not fail
	return Digest(h.Sum(nil))
}

// Decode reads a .caibx file to its end. It checks every field and refuses bytes after the tail. Its
// memory grows with the valid rows read, not with the sizes that the file claims. An error about the
// content wraps ErrInvalid; any other comes from r.
func Decode(r io.Reader) (*Index, error) {
	var head [headSize]byte
	if err := readFull(r, head[:]); err != nil {
		return nil, err
	}
	x, err := decodeHead(head[:])
	if err != nil {
		return nil, err
	}
	// Decode reads one row ahead: the last row is the tail, and only the end of the file identifies it.
	var this, next [rowSize]byte
	if err := readFull(r, this[:]); err != nil {
		return nil, err
	}
	for {
		n, err := io.ReadFull(r, next[:])
		switch {
		case err == io.EOF:
			if err := x.checkTail(this[:]); err != nil {
				return nil, err
			}
			return x, nil
		case err == io.ErrUnexpectedEOF:
			return nil, fmt.Errorf("%w: %d bytes follow the last whole entry (truncated, or not an index)", ErrInvalid, n)
		case err != nil:
			return nil, err
		}
		if err := x.decodeRow(this[:]); err != nil {
			return nil, err
		}
		this = next
	}
}

func readFull(r io.Reader, p []byte) error {
	_, err := io.ReadFull(r, p)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("%w: truncated (shorter than an empty index)", ErrInvalid)
	}
	return err
}

func uint64At(p []byte, i int) uint64 { return binary.LittleEndian.Uint64(p[8*i:]) }

// entrySize is the size of the first object in a .catar archive.
const entrySize = 64

// IsArchive reports whether an image that begins with start is a .catar archive of a directory tree, as
// casync and desync write it. It needs at least 16 bytes.
func IsArchive(start []byte) bool {
	return len(start) >= 16 && uint64At(start, 0) == entrySize && uint64At(start, 1) == typeEntry
}

// HasFileFlags reports whether the feature flags list file metadata, as those of a directory tree
// (.caidx) do. casync --with sets them for an image too.
func (x *Index) HasFileFlags() bool { return x.flags&flagsWith != 0 }

func decodeHead(head []byte) (*Index, error) {
	if IsArchive(head) {
		return nil, ErrArchive
	}
	if uint64At(head, 0) != indexSize || uint64At(head, 1) != typeIndex {
		return nil, fmt.Errorf("%w: not a casync index (unknown first bytes)", ErrInvalid)
	}
	flags := uint64At(head, 2)
	if flags&flagsReserved != 0 {
		return nil, fmt.Errorf("%w: unknown feature flags %#x", ErrInvalid, flags&flagsReserved)
	}
	for i := 3; i < 6; i++ {
		if uint64At(head, i) > MaxChunkSize {
			return nil, fmt.Errorf("%w: a chunk size of %d is over %d", ErrInvalid, uint64At(head, i), MaxChunkSize)
		}
	}
	params := Params{int64(uint64At(head, 3)), int64(uint64At(head, 4)), int64(uint64At(head, 5))}
	if err := params.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if uint64At(head, 6) != unsized || uint64At(head, 7) != typeTable {
		return nil, fmt.Errorf("%w: no chunk table behind the head", ErrInvalid)
	}
	return &Index{flags: flags, params: params}, nil
}

func (x *Index) decodeRow(p []byte) error {
	end := uint64At(p, 0)
	if end == 0 && uint64At(p, 4) == tailMarker {
		return fmt.Errorf("%w: bytes follow the tail", ErrInvalid)
	}
	if end > 1<<63-1 {
		return fmt.Errorf("%w: chunk %d ends beyond 2^63", ErrInvalid, x.n)
	}
	return x.appendRow(int64(end), Digest(p[8:]))
}

func (x *Index) checkTail(p []byte) error {
	want := [...]uint64{0, 0, indexSize, uint64(x.EncodedSize() - indexSize), tailMarker}
	for i, w := range want {
		if uint64At(p, i) != w {
			return fmt.Errorf("%w: truncated, or the tail is damaged", ErrInvalid)
		}
	}
	return nil
}
