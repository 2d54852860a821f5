// Package delta encodes the new chunks of an image against bytes of an older image. A delta is a file
// for one pair of images: for each encoded chunk it has a zstd frame, whose raw dictionary is a few
// ranges of the old image. Like every companion of an index, a delta is a hint: a decoded chunk counts
// only if it has the digest in the index. The package knows nothing of stores, seeds or targets.
package delta

import (
	"errors"
	"iter"

	"cairn/blob"
)

// Suffix ends the name of a delta's file.
const Suffix = ".cadelta"

// Limits of the format.
const (
	MaxRanges    = 64      // of one chunk
	MaxReference = 2 << 20 // bytes of the ranges of one chunk together
	MaxChunk     = 2 << 20 // bytes of an encoded chunk; larger chunks come from the store
	MaxPayload   = 4 << 20 // bytes
	// MaxReferences limits the bytes of all ranges, as a multiple of the old image's size: a table must
	// not make its reader read much for little.
	MaxReferences = 8
)

// ErrInvalid is wrapped by every error about a delta that breaks the format.
var ErrInvalid = errors.New("invalid delta")

// Kind is the encoding of a payload. A reader passes over kinds that it does not know: those chunks
// come from the store.
type Kind uint8

// Frame is a payload of one zstd frame, whose raw dictionary is the reference.
const Frame Kind = 0

// Range is a run of bytes of the old image.
type Range struct{ Offset, Size int64 }

// End returns the offset after the last byte.
func (r Range) End() int64 { return r.Offset + r.Size }

// Head identifies the pair of images.
type Head struct {
	Algorithm blob.Algorithm // of both indexes
	Old, New  blob.Digest    // of the indexes
	OldSize   int64          // of the old image, bytes
}

// Row is an encoded chunk.
type Row struct {
	Chunk  int // number of the chunk in the new image's index
	Kind   Kind
	Offset int64   // of the payload in the delta's file
	Size   int64   // of the payload, bytes
	Stored int64   // bytes of the chunk's file in the store, which are more than Size
	Ranges []Range // of the old image, at most MaxRanges. Their bytes, one after the other, are the reference
}

// Delta is the head and the table of a delta's file, without the payloads. It is immutable.
type Delta struct {
	Head
	start  int64 // offset of the first payload
	rows   []row
	ranges []Range // of all rows, in order
}

// row is a Row in memory. Its payload and its ranges begin where those of the previous row end.
type row struct {
	payloadEnd int64 // from start on
	chunk      uint32
	stored     uint32
	rangeEnd   uint32
	kind       Kind
}

// Len returns the number of encoded chunks.
func (d *Delta) Len() int { return len(d.rows) }

// Row returns the i-th row, in the order of the chunks. The caller must not modify its ranges.
func (d *Delta) Row(i int) Row {
	var before row
	if i > 0 {
		before = d.rows[i-1]
	}
	r := d.rows[i]
	return Row{
		Chunk: int(r.chunk), Kind: r.kind,
		Offset: d.start + before.payloadEnd, Size: r.payloadEnd - before.payloadEnd, Stored: int64(r.stored),
		Ranges: d.ranges[before.rangeEnd:r.rangeEnd:r.rangeEnd],
	}
}

// All returns the rows in order.
func (d *Delta) All() iter.Seq2[int, Row] {
	return func(yield func(int, Row) bool) {
		for i := range d.rows {
			if !yield(i, d.Row(i)) {
				return
			}
		}
	}
}

// FileSize returns the size of the delta's file in bytes.
func (d *Delta) FileSize() int64 {
	if len(d.rows) == 0 {
		return d.start
	}
	return d.start + d.rows[len(d.rows)-1].payloadEnd
}

// HeadSize returns the size of head and table, which precede the first payload.
func (d *Delta) HeadSize() int64 { return d.start }

// Memory returns about how many bytes of memory the table takes.
func (d *Delta) Memory() int64 {
	const rowSize, rangeSize = 24, 16
	return rowSize*int64(cap(d.rows)) + rangeSize*int64(cap(d.ranges))
}
