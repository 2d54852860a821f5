// Package view is an image that is not here yet, as bytes at offsets: a chunk is fetched when it is first
// read, once however many ask, proven by its store, and kept in memory for a while. It knows nothing of
// how the bytes are served.
package view

import (
	"context"
	"fmt"
	"io"
	"iter"

	"cairn/blob"
)

// Image is an index's image, seen through a cache. Safe for concurrent use.
type Image struct {
	index *blob.Index
	cache *Cache
	ahead readAhead
}

// New is x's image with chunks from cache, whose store must know them by x's digest algorithm.
func New(x *blob.Index, cache *Cache) *Image {
	return &Image{index: x, cache: cache, ahead: readAhead{index: x, most: min(maxAhead, cache.limit/8)}}
}

// Size is the image's length in bytes.
func (v *Image) Size() int64 { return v.index.Size() }

// piece is the part of a chunk that a read covers.
type piece struct {
	number int // of the chunk
	chunk  blob.Chunk
	from   int64 // the part's first byte in the chunk
	size   int64
}

// pieces yields the parts of chunks that make up n bytes from off on, which lie within the image.
func (v *Image) pieces(off, n int64) iter.Seq[piece] {
	return func(yield func(piece) bool) {
		for i := v.index.Find(off); n > 0; i++ {
			c := v.index.At(i)
			p := piece{number: i, chunk: c, from: off - c.Offset}
			p.size = min(n, c.Size-p.from)
			if !yield(p) {
				return
			}
			off, n = off+p.size, n-p.size
		}
	}
}

func (v *Image) check(off, n int64) error {
	if off < 0 || n < 0 || off > v.Size()-n {
		return fmt.Errorf("%d bytes at %d are not within the image's %d", n, off, v.Size())
	}
	return nil
}

// ReadAt fills p with the image's bytes from off on, or fails. All the chunks it needs are fetched at once,
// and, when reads follow each other, some of those behind them.
func (v *Image) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := v.check(off, int64(len(p))); err != nil {
		return err
	}
	if len(p) == 0 {
		return nil
	}
	entries := v.cache.start(v.keys(off, int64(len(p))))
	if from, to := v.ahead.next(off, int64(len(p))); from < to {
		v.prefetch(from, to)
	}
	return v.fill(ctx, p, off, entries)
}

// keys lists the chunks that make up n bytes from off on, without those that are all zero.
func (v *Image) keys(off, n int64) []key {
	var keys []key
	for part := range v.pieces(off, n) {
		if !v.index.IsZero(part.number) {
			keys = append(keys, keyOf(part.chunk))
		}
	}
	return keys
}

// fill copies the image's bytes from off on to p, as they come.
func (v *Image) fill(ctx context.Context, p []byte, off int64, entries []*entry) error {
	for part := range v.pieces(off, int64(len(p))) {
		dst := p[:part.size]
		p = p[part.size:]
		if v.index.IsZero(part.number) {
			clear(dst)
			continue
		}
		data, err := entries[0].wait(ctx)
		if err != nil {
			return fmt.Errorf("the image's bytes at %d: %w", part.chunk.Offset, err)
		}
		entries = entries[1:]
		copy(dst, data[part.from:])
	}
	return nil
}

// ReadResident fills p like ReadAt if that takes no waiting, and says whether it did.
func (v *Image) ReadResident(p []byte, off int64) bool {
	if v.check(off, int64(len(p))) != nil {
		return false
	}
	for part := range v.pieces(off, int64(len(p))) {
		dst := p[:part.size]
		p = p[part.size:]
		if v.index.IsZero(part.number) {
			clear(dst)
			continue
		}
		data := v.cache.here(keyOf(part.chunk))
		if data == nil {
			return false
		}
		copy(dst, data[part.from:])
	}
	return true
}

// Prefetch starts to fetch the chunks of n bytes from off on, as far as they may stay in the cache, and
// does not wait for them.
func (v *Image) Prefetch(_ context.Context, off, n int64) error {
	if err := v.check(off, n); err != nil {
		return err
	}
	v.prefetch(off, off+min(n, v.cache.limit/2))
	return nil
}

// prefetch starts to fetch the chunks from off to end until the cache takes no more, and returns how far
// that is.
func (v *Image) prefetch(off, end int64) int64 {
	n := v.cache.prefetch(v.keys(off, end-off))
	for part := range v.pieces(off, end-off) {
		if v.index.IsZero(part.number) {
			off += part.size
			continue
		}
		if n == 0 {
			return off
		}
		off += part.size
		n--
	}
	return off
}

// Extents yields the lengths of the chunks' parts that make up n bytes from off on, and whether they are
// all zero, as the index tells. The range must lie within the image.
func (v *Image) Extents(off, n int64) iter.Seq2[int64, bool] {
	return func(yield func(int64, bool) bool) {
		for part := range v.pieces(off, n) {
			if !yield(part.size, v.index.IsZero(part.number)) {
				return
			}
		}
	}
}

// CopyTo writes n bytes from off on to w, in order, while what follows is on its way.
func (v *Image) CopyTo(ctx context.Context, w io.Writer, off, n int64) error {
	if err := v.check(off, n); err != nil {
		return err
	}
	ahead, end := off, off+n
	buf := make([]byte, 0, copySize)
	for off < end && ctx.Err() == nil {
		ahead = v.prefetch(max(ahead, off), min(off+v.cache.limit/2, end))
		buf = buf[:min(copySize, end-off)]
		if err := v.fill(ctx, buf, off, v.cache.start(v.keys(off, int64(len(buf))))); err != nil {
			return err
		}
		if _, err := w.Write(buf); err != nil {
			return err
		}
		off += int64(len(buf))
	}
	return ctx.Err()
}

// copySize is how many bytes CopyTo writes at once.
const copySize = 1 << 20
