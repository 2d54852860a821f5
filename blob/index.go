// Package blob is the vocabulary of cairn. An image is a run of opaque bytes, cut into chunks. An Index
// lists its chunks in order. A Digest names a chunk. The package implements casync's .caibx index
// format and does not know stores, seeds, devices or networks.
package blob

import (
	"errors"
	"fmt"
	"iter"
	"sort"
	"sync"
)

// Limits of the format and of accepted input.
const (
	MaxChunkSize = 128 << 20 // bytes; casync's limit for a chunk
	MaxChunks    = 1 << 26   // chunks in one index: 2.5 GiB of index, 4 TiB of image at the default sizes
)

// ErrInvalid is wrapped by every error about an index that breaks the format.
var ErrInvalid = errors.New("invalid index")

// ErrArchive wraps ErrInvalid. Decode returns it for a .catar archive.
var ErrArchive = fmt.Errorf("%w: it is a .catar archive, which holds a directory tree itself", ErrInvalid)

// Params are the chunk sizes an image was cut with, in bytes: 1 ≤ Min ≤ Avg ≤ Max ≤ MaxChunkSize.
type Params struct{ Min, Avg, Max int64 }

// String returns the sizes as MIN:AVG:MAX.
func (p Params) String() string { return fmt.Sprintf("%d:%d:%d", p.Min, p.Avg, p.Max) }

// Validate returns an error if the sizes are out of range or out of order.
func (p Params) Validate() error {
	if p.Min < 1 || p.Avg < p.Min || p.Max < p.Avg || p.Max > MaxChunkSize {
		return fmt.Errorf("chunk sizes %v are not 1 ≤ min ≤ avg ≤ max ≤ %d", p, MaxChunkSize)
	}
	return nil
}

// Chunk is one entry of an index: Size bytes of the image from Offset on, whose digest is Digest.
type Chunk struct {
	Digest Digest
	Offset int64
	Size   int64
}

// End returns the offset after the chunk's last byte.
func (c Chunk) End() int64 { return c.Offset + c.Size }

// row is a chunk in memory and in the file: 40 bytes. Its offset is the end of the previous row.
type row struct {
	end    int64
	digest Digest
}

// Index lists the chunks of one image in order. It is valid by construction and immutable, so
// goroutines may share it. It takes 40 bytes per chunk.
type Index struct {
	flags  uint64
	params Params
	blocks [][]row // all but the last are full; blocks avoid copying a growing index
	n      int     // rows in them

	zeros sync.Once // computes zero
	zero  zeroDigests
}

// Builder collects chunks in image order and makes an Index of them.
type Builder struct {
	x     *Index
	table *Table
}

// NewBuilder returns a Builder of an index for chunks cut with params and hashed with algorithm.
func NewBuilder(algorithm Algorithm, params Params) (*Builder, error) {
	if err := params.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	flags := uint64(flagsSHA256)
	if algorithm == SHA512_256 {
		flags = flagsSHA512
	}
	x := &Index{flags: flags, params: params}
	return &Builder{x, newTable(x, 0)}, nil
}

// Add appends a chunk of size bytes, where 1 ≤ size ≤ Max. It returns the number of the first chunk
// with this digest, which is less than Len-1 for a repeated chunk.
func (b *Builder) Add(size int64, digest Digest) (first int, err error) {
	if err := b.x.appendRow(b.x.Size()+size, digest); err != nil {
		return 0, err
	}
	return b.table.insertChunk(b.x.n - 1), nil
}

// Len returns the number of chunks added so far.
func (b *Builder) Len() int { return b.x.n }

// Index returns the index of the added chunks. The builder must not be used afterwards.
func (b *Builder) Index() *Index { return b.x }

func (x *Index) appendRow(end int64, digest Digest) error {
	if start := x.Size(); end <= start || end-start > x.params.Max {
		return fmt.Errorf("%w: chunk %d ends at %d, after %d, with chunks of at most %d bytes",
			ErrInvalid, x.n, end, start, x.params.Max)
	}
	if x.n == MaxChunks {
		return fmt.Errorf("%w: more than %d chunks; use larger chunks", ErrInvalid, MaxChunks)
	}
	switch {
	case x.n == 0:
		x.blocks = append(x.blocks, nil) // grows on demand, since most indexes are small
	case x.n%blockRows == 0:
		x.blocks = append(x.blocks, make([]row, 0, blockRows))
	}
	last := &x.blocks[len(x.blocks)-1]
	*last = append(*last, row{end, digest})
	x.n++
	return nil
}

// blockRows is the number of rows in a full block.
const blockRows = 1 << 12

func (x *Index) row(i int) *row { return &x.blocks[i/blockRows][i%blockRows] }

// Algorithm returns the hash function of the index's digests.
func (x *Index) Algorithm() Algorithm {
	if x.flags&flagSHA512 != 0 {
		return SHA512_256
	}
	return SHA256
}

// Params returns the chunk sizes the image was cut with.
func (x *Index) Params() Params { return x.params }

// Size returns the image's length in bytes.
func (x *Index) Size() int64 {
	if x.n == 0 {
		return 0
	}
	return x.row(x.n - 1).end
}

// Len returns the number of chunks.
func (x *Index) Len() int { return x.n }

// At returns the i-th chunk. It panics unless 0 ≤ i < Len.
func (x *Index) At(i int) Chunk {
	r := x.row(i)
	c := Chunk{Digest: r.digest, Size: r.end}
	if i > 0 {
		c.Offset = x.row(i - 1).end
		c.Size -= c.Offset
	}
	return c
}

// All yields the chunks in order.
func (x *Index) All() iter.Seq2[int, Chunk] { return x.Range(0, x.n) }

// Range yields the chunks [lo, hi) in order.
func (x *Index) Range(lo, hi int) iter.Seq2[int, Chunk] {
	return func(yield func(int, Chunk) bool) {
		for i := lo; i < hi; i++ {
			if !yield(i, x.At(i)) {
				return
			}
		}
	}
}

// Span returns the end of the longest run of chunks from chunk lo on with at most size bytes. The run
// has at least one chunk. Span panics unless 0 ≤ lo < Len.
func (x *Index) Span(lo int, size int64) (hi int) {
	start := x.At(lo).Offset
	return max(lo+1, x.Find(start+size))
}

// Find returns the number of the chunk that holds the byte at offset, or Len if the image ends before it.
func (x *Index) Find(offset int64) int {
	return sort.Search(x.n, func(i int) bool { return x.row(i).end > offset })
}

// zeroDigests are the digests of all-zero chunks of two sizes: the maximum, into which runs of zeros are
// cut, and the last chunk's size.
type zeroDigests struct{ largest, last Digest }

// IsZero reports whether the digest of the i-th chunk shows that it is all zero. It recognises only
// chunks of the maximum size and the last chunk; a run of zeros is not cut into other sizes.
func (x *Index) IsZero(i int) bool {
	x.zeros.Do(func() {
		x.zero.largest = x.Algorithm().SumZeros(x.params.Max)
		x.zero.last = x.Algorithm().SumZeros(x.At(x.n - 1).Size)
	})
	c := x.At(i)
	return c.Size == x.params.Max && c.Digest == x.zero.largest || i == x.n-1 && c.Digest == x.zero.last
}
