// Package pack keeps many chunks in one object. A pack has the files of chunks one after the other, and a table of them
// at its end. A map beside an index says where each chunk of the image lies. The package writes packs, encodes and
// decodes maps, and reads chunks from packs with few requests. Every chunk is hashed: a stale, damaged or hostile map
// or pack costs requests, and never gives wrong bytes. The package does not know where packs and maps lie.
package pack

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"cairn/blob"
)

const (
	// Suffix ends the name of a pack.
	Suffix = ".capk"
	// MapSuffix ends the name of a map, which lies beside the index.
	MapSuffix = ".camap"

	magic      = "cairnpck"
	version    = 1
	headSize   = 16 // before the first chunk file
	rowSize    = 36 // of the table, for each chunk
	randomSize = 16
	footerSize = randomSize + 8

	// MinSize, DefaultSize and MaxSize are sizes at which a Writer closes a pack, in bytes.
	MinSize, DefaultSize, MaxSize = 256 << 10, 4 << 20, 64 << 20
	// nearby is the number of bytes between two chunk files that are near each other.
	nearby = 512 << 10
	// MaxFile is the largest size of a pack's file in bytes. A pack of one chunk may be larger than MaxSize.
	MaxFile = 256 << 20
)

// ErrInvalid is wrapped by every error about a pack or map that breaks the format.
var ErrInvalid = errors.New("invalid pack")

// Pack is a pack's name and size.
type Pack struct {
	ID   blob.Digest // SHA-256 of the file
	Size int64       // of the file, bytes
}

// Name returns the name of the pack in the directory of packs.
func (p Pack) Name() string { return p.ID.String() + Suffix }

// ParseName parses the name of a pack, and reports whether it is one.
func ParseName(name string) (id blob.Digest, ok bool) {
	hex, ok := strings.CutSuffix(name, Suffix)
	if !ok {
		return id, false
	}
	id, err := blob.ParseDigest(hex)
	return id, err == nil
}

// Place is where the file of a chunk lies: Size bytes of a pack from Offset on.
type Place struct {
	Pack         Pack
	Offset, Size int64
}

// End returns the offset after the chunk file's last byte.
func (p Place) End() int64 { return p.Offset + p.Size }

// Near reports whether one request reads both files, with few bytes between them.
func (p Place) Near(q Place) bool {
	gap := max(p.Offset, q.Offset) - min(p.End(), q.End())
	return p.Pack == q.Pack && gap <= nearby
}

// Entry is a chunk in a pack.
type Entry struct {
	Digest       blob.Digest
	Offset, Size int64 // of the chunk's file in the pack
}

// Decode returns the chunks of a whole pack whose name says id, in their order in the file. They are not hashed.
func Decode(id blob.Digest, file []byte) (a blob.Algorithm, entries []Entry, err error) {
	if blob.Digest(sha256.Sum256(file)) != id {
		return 0, nil, fmt.Errorf("%w: damaged (its SHA-256 is not that of its name)", ErrInvalid)
	}
	if len(file) < headSize+footerSize || string(file[:8]) != magic {
		return 0, nil, fmt.Errorf("%w: not a pack", ErrInvalid)
	}
	if v := binary.LittleEndian.Uint32(file[8:]); v != version {
		return 0, nil, fmt.Errorf("%w: its version is %d, and %d is known", ErrInvalid, v, version)
	}
	algorithm, n := binary.LittleEndian.Uint32(file[12:]), binary.LittleEndian.Uint64(file[len(file)-8:])
	switch rest := len(file) - headSize - footerSize; {
	case algorithm > uint32(blob.SHA256):
		return 0, nil, fmt.Errorf("%w: unknown digest algorithm %d", ErrInvalid, algorithm)
	case len(file) > MaxFile:
		return 0, nil, fmt.Errorf("%w: %d bytes, and %d are the limit", ErrInvalid, len(file), MaxFile)
	case n < 1 || n > uint64(rest/rowSize):
		return 0, nil, fmt.Errorf("%w: %d bytes with %d chunks", ErrInvalid, len(file), n)
	}
	table := len(file) - footerSize - int(n)*rowSize
	entries, err = decodeEntries(file[table:len(file)-footerSize], int64(table))
	return blob.Algorithm(algorithm), entries, err
}

// decodeEntries decodes the table of a pack, which begins at offset end of the file.
func decodeEntries(table []byte, end int64) (entries []Entry, err error) {
	at := int64(headSize)
	for ; len(table) > 0; table = table[rowSize:] {
		e := Entry{Digest: blob.Digest(table[:32]), Offset: at, Size: int64(binary.LittleEndian.Uint32(table[32:]))}
		if e.Size < 1 || e.Size > end-at {
			return nil, fmt.Errorf("%w: a chunk of %d bytes at %d of %d", ErrInvalid, e.Size, at, end)
		}
		at += e.Size
		entries = append(entries, e)
	}
	if at != end {
		return nil, fmt.Errorf("%w: %d bytes between its chunks and its table", ErrInvalid, end-at)
	}
	return entries, nil
}
