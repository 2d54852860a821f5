// Package blob is the vocabulary of cairn: an image is a run of opaque bytes, cut into chunks; an Index
// lists its chunks in order; a Digest names a chunk. The package knows casync's .caibx index format and
// nothing of stores, seeds, devices or networks.
package blob

import (
	"errors"
	"fmt"
	"iter"
	"sort"
	"sync"
)

// Limits of the format and of what is accepted from outside.
const (
	MaxChunkSize = 128 << 20 // bytes; casync's limit for a chunk
	MaxChunks    = 1 << 26   // chunks in one index: 2.5 GiB of index, 4 TiB of image at the default sizes
)

// ErrInvalid is wrapped by every error about an index that breaks the format.
var ErrInvalid = errors.New("invalid index")

// ErrArchive is the ErrInvalid of a file that is an archive, where an index is wanted.
var ErrArchive = fmt.Errorf("%w: it is a .catar archive, which holds a directory tree itself", ErrInvalid)

// Params are the chunk sizes an image was cut with, in bytes: 1 ≤ Min ≤ Avg ≤ Max ≤ MaxChunkSize.
type Params struct{ Min, Avg, Max int64 }

// String returns the sizes as MIN:AVG:MAX.
func (p Params) String() string { return fmt.Sprintf("%d:%d:%d", p.Min, p.Avg, p.Max) }

// Validate says what is wrong with p, if anything.
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

// End is the offset behind the chunk's last byte.
func (c Chunk) End() int64 { return c.Offset + c.Size }

// row is a chunk as the index keeps and stores it; the offset is the end of the row before. 40 bytes.
type row struct {
	end    int64
	digest Digest
}

// Index lists the chunks of one image in order. It is valid by construction and does not change, so
// that goroutines may share it. It takes 40 bytes a chunk.
type Index struct {
	flags  uint64
	params Params
	blocks [][]row // all but the last one full; so that a growing index is never copied
	n      int     // rows in them

	zeros sync.Once // guards the making of
	zero  zeroDigests
}

// Builder collects chunks in image order and makes an Index of them.
type Builder struct {
	x     *Index
	table *Table
}

// NewBuilder starts an index for chunks cut with params and hashed with algorithm.
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

// Add appends the next chunk, of size bytes, which must fit the chunk sizes. It returns the number of the
// first chunk with this digest: less than Len-1 when the chunk came before.
func (b *Builder) Add(size int64, digest Digest) (first int, err error) {
	if err := b.x.add(b.x.Size()+size, digest); err != nil {
		return 0, err
	}
	return b.table.add(b.x.n - 1), nil
}

// Len is the number of chunks so far.
func (b *Builder) Len() int { return b.x.n }

// Index returns what was collected. The builder must not be used afterwards.
func (b *Builder) Index() *Index { return b.x }

func (x *Index) add(end int64, digest Digest) error {
	if start := x.Size(); end <= start || end-start > x.params.Max {
		return fmt.Errorf("%w: chunk %d ends at %d, after %d, with chunks of at most %d bytes",
			ErrInvalid, x.n, end, start, x.params.Max)
	}
	if x.n == MaxChunks {
		return fmt.Errorf("%w: more than %d chunks; use larger chunks", ErrInvalid, MaxChunks)
	}
	switch {
	case x.n == 0:
		x.blocks = append(x.blocks, nil) // it grows: most indexes are small
	case x.n%blockRows == 0:
		x.blocks = append(x.blocks, make([]row, 0, blockRows))
	}
	last := &x.blocks[len(x.blocks)-1]
	*last = append(*last, row{end, digest})
	x.n++
	return nil
}

// blockRows is how many rows a block holds.
const blockRows = 1 << 12

func (x *Index) row(i int) *row { return &x.blocks[i/blockRows][i%blockRows] }

// Algorithm is the hash function of the index's digests.
func (x *Index) Algorithm() Algorithm {
	if x.flags&flagSHA512 != 0 {
		return SHA512_256
	}
	return SHA256
}

// Params are the chunk sizes the image was cut with.
func (x *Index) Params() Params { return x.params }

// Size is the image's length in bytes.
func (x *Index) Size() int64 {
	if x.n == 0 {
		return 0
	}
	return x.row(x.n - 1).end
}

// Len is the number of chunks.
func (x *Index) Len() int { return x.n }

// At is the i-th chunk. It panics unless 0 ≤ i < Len.
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

// Range yields the chunks from lo up to but not including hi, in order.
func (x *Index) Range(lo, hi int) iter.Seq2[int, Chunk] {
	return func(yield func(int, Chunk) bool) {
		for i := lo; i < hi; i++ {
			if !yield(i, x.At(i)) {
				return
			}
		}
	}
}

// Span is the end of the longest run of chunks that begins with chunk lo and has at most size bytes; it
// has at least one chunk. It panics unless 0 ≤ lo < Len.
func (x *Index) Span(lo int, size int64) (hi int) {
	start := x.At(lo).Offset
	return max(lo+1, x.Find(start+size))
}

// Find is the number of the chunk that holds the byte at offset, or Len when the image ends before it.
func (x *Index) Find(offset int64) int {
	return sort.Search(x.n, func(i int) bool { return x.row(i).end > offset })
}

// zeroDigests are the digests an all-zero chunk may have: of a largest chunk, as runs of zeros are cut,
// and of the last chunk's size.
type zeroDigests struct{ largest, last Digest }

// IsZero says whether the i-th chunk is all zero, as its digest tells. Zero chunks of odd sizes, which no
// run of zeros is cut into, are not recognised.
func (x *Index) IsZero(i int) bool {
	x.zeros.Do(func() {
		x.zero.largest = x.Algorithm().SumZeros(x.params.Max)
		x.zero.last = x.Algorithm().SumZeros(x.At(x.n - 1).Size)
	})
	c := x.At(i)
	return c.Size == x.params.Max && c.Digest == x.zero.largest || i == x.n-1 && c.Digest == x.zero.last
}
