// Package view is an image that is not here yet, as bytes at offsets. A chunk is fetched when it is first read, and kept
// in memory, and on disk if there is an image cache. Chunks that are likely to be read next are prefetched: those that a
// stream of reads comes to, the neighbours of a chunk that was missed, those in a profile of earlier reads, and in the
// end all. The package decides what to fetch; blob/view/fetch fetches it. It does not know how the bytes are served.
package view

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"time"

	"cairn/blob"
	"cairn/blob/view/fetch"
)

// Disk is where an image is kept. It must be safe for concurrent use. *imagecache.File implements it.
type Disk interface {
	fetch.Disk
	// ReadNow fills p with the bytes at off, which lie in the chunks from lo up to but not including hi. It reports false
	// if a chunk is missing, or the disk would have to be waited for. It does not allocate.
	ReadNow(p []byte, off int64, lo, hi int) bool
	// Read is ReadNow that waits for the disk.
	Read(p []byte, off int64, lo, hi int) bool
	// Wants reports whether chunk i is missing and would be kept.
	Wants(i int) bool
	// Queued reports whether chunk i will be there soon.
	Queued(i int) bool
	// Pin has chunk i evicted after all others.
	Pin(i int)
	// Missing returns how many chunks are not there and proven.
	Missing() int
	// Room reports whether there is room for chunks that no read asked for.
	Room() bool
	// Path names the place, for the log.
	Path() string
	Close() error
}

// Options of an Image. The zero value is the plainest.
type Options struct {
	Name   string        // for messages
	Disk   Disk          // where the image is kept; may be nil
	Around bool          // prefetch the neighbours of a chunk that is missed
	Hold   time.Duration // how long a read waits for a store that is unavailable, which is asked again; 0 is not at all
	Record *Recorder     // notes each chunk's first read; may be nil
	Log    *slog.Logger  // for the progress of Fill; nil logs nothing
}

// Image is an index's image. Safe for concurrent use.
type Image struct {
	name   string
	index  *blob.Index
	chunks *fetch.Client
	disk   Disk
	record *Recorder
	log    *slog.Logger
	ahead  readAhead
	early  *early
	widely bool // prefetch neighbours
	count  counters
}

// New returns x's image with chunks from source. A source's memory limits how far its images are prefetched.
func New(x *blob.Index, source *fetch.Source, o Options) *Image {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	v := &Image{name: o.Name, index: x, disk: o.Disk, record: o.Record, log: o.Log, early: newEarly(x, o.Disk), widely: o.Around}
	v.chunks = fetch.NewClient(source, x, fetch.ClientOptions{Name: o.Name, Disk: o.Disk, Hold: o.Hold, Observer: v.early})
	v.ahead = readAhead{index: x, most: min(maxAhead, v.chunks.Memory()/8)}
	return v
}

// Size returns the image's length in bytes.
func (v *Image) Size() int64 { return v.index.Size() }

// Close ends what Follow and Fill began, and lets go of the image's disk. Reads go on, without it.
func (v *Image) Close() error {
	v.chunks.StopFeeds()
	if v.disk == nil {
		return nil
	}
	return v.disk.Close()
}

func (v *Image) check(off, n int64) error {
	if off < 0 || n < 0 || off > v.Size()-n {
		return fmt.Errorf("%d bytes at %d are not within the image's %d", n, off, v.Size())
	}
	return nil
}

// span returns the chunks that n bytes from off on lie in, hi not included; n is not 0.
func (v *Image) span(off, n int64) (lo, hi int) {
	lo = v.index.Find(off)
	for hi = lo + 1; v.index.At(hi-1).End() < off+n; hi++ {
	}
	return lo, hi
}

// ReadAt fills p with the image's bytes from off on, or fails. All the chunks it needs are fetched at once, and, when
// reads follow each other, some of those behind them.
func (v *Image) ReadAt(ctx context.Context, p []byte, off int64) error {
	n := int64(len(p))
	if err := v.check(off, n); err != nil || n == 0 {
		return err
	}
	lo, hi := v.span(off, n)
	entries, missing := v.chunks.Request(lo, hi)
	if from, to := v.ahead.next(off, n, v.pitch()); from < to {
		v.prefetch(from, to, fetch.ReadAhead)
	} else if missing && v.widely {
		v.prefetchNeighbours(lo, hi)
	}
	v.touch(lo, hi)
	if err := v.fill(ctx, p, off, lo, entries); err != nil {
		v.count.failures.Add(1)
		return err
	}
	v.count.answer(n)
	return nil
}

// pitch returns how far to read ahead of a stream at most: twice what the link holds.
func (v *Image) pitch() int64 { return max(2*v.chunks.Product(), leastPitch) }

// fill copies the image's bytes from off on to p, as they come. The entries are those of the chunks from lo on.
func (v *Image) fill(ctx context.Context, p []byte, off int64, lo int, entries []*fetch.Entry) error {
	hi := lo + len(entries)
	for i := lo; i < hi; {
		next := i + 1
		dst := p[:min(int64(len(p)), v.index.At(i).End()-off)]
		var err error
		switch e := entries[i-lo]; {
		case e != nil:
			err = v.copyChunk(ctx, dst, off, e, i)
		case v.index.IsZero(i):
			clear(dst)
		default:
			for next < hi && entries[next-lo] == nil && v.disk.Has(next) {
				next++
			}
			dst = p[:min(int64(len(p)), v.index.At(next-1).End()-off)]
			if !v.disk.Read(dst, off, i, next) {
				next = i + 1
				dst = p[:min(int64(len(p)), v.index.At(i).End()-off)]
				err = v.readAgain(ctx, dst, off, i)
			}
		}
		if err != nil {
			return err
		}
		p, off, i = p[len(dst):], off+int64(len(dst)), next
	}
	return nil
}

// readAgain fills p with a part of a chunk that has gone from the disk.
func (v *Image) readAgain(ctx context.Context, p []byte, off int64, i int) error {
	entries, _ := v.chunks.Request(i, i+1)
	e := entries[0]
	if e == nil { // it came back
		if v.disk.Read(p, off, i, i+1) {
			return nil
		}
		e = v.chunks.Refetch(i)
	}
	return v.copyChunk(ctx, p, off, e, i)
}

// copyChunk waits for chunk i and copies its bytes from the image's offset off on to p.
func (v *Image) copyChunk(ctx context.Context, p []byte, off int64, e *fetch.Entry, i int) error {
	start := v.index.At(i).Offset
	data, err := v.chunks.Wait(ctx, e, i)
	if err != nil {
		return fmt.Errorf("the image's bytes at %d: %w", start, err)
	}
	copy(p, data[off-start:])
	return nil
}

// ReadResident fills p like ReadAt if that takes no waiting, and reports whether it did. It does not allocate, unless
// it comes to a chunk that was prefetched for the first time.
func (v *Image) ReadResident(p []byte, off int64) bool {
	n := int64(len(p))
	if v.check(off, n) != nil {
		return false
	}
	if n == 0 {
		return true
	}
	lo, hi := v.span(off, n)
	switch {
	case v.disk != nil && v.disk.ReadNow(p, off, lo, hi):
		v.count.diskHits.Add(1)
	case v.readChunks(p, off, lo, hi):
		v.count.memoryHits.Add(1)
	default:
		return false
	}
	v.count.answer(n)
	v.touch(lo, hi)
	return true
}

// readChunks fills p from memory, zeros and, in part, the disk, if all is there.
func (v *Image) readChunks(p []byte, off int64, lo, hi int) bool {
	for i := lo; i < hi; i++ {
		c := v.index.At(i)
		dst := p[:min(int64(len(p)), c.End()-off)]
		if v.index.IsZero(i) {
			clear(dst)
		} else if data := v.chunks.Lookup(c); data != nil {
			copy(dst, data[off-c.Offset:])
			if v.disk != nil {
				v.disk.Offer(i, data) // it was too busy when the chunk came
			}
		} else if v.disk == nil || !v.disk.ReadNow(dst, off, i, i+1) {
			return false
		}
		p, off = p[len(dst):], off+int64(len(dst))
	}
	return true
}

// touch notes that chunks were read.
func (v *Image) touch(lo, hi int) {
	if v.record != nil {
		for i := lo; i < hi; i++ {
			v.record.touch(i)
		}
	}
	if lo = v.early.find(lo, hi); lo < hi {
		v.useEarly(lo, hi)
	}
}

// useEarly notes the first read of prefetched chunks. The prefetch was right, and goes on behind them, unless a profile
// named them: it knows better what comes next.
func (v *Image) useEarly(lo, hi int) {
	foretold := false
	for i := lo; i < hi; i++ {
		if used, byProfile := v.early.use(i); used {
			v.chunks.MarkRead(v.index.At(i))
			foretold = foretold || byProfile
		}
	}
	if foretold {
		return
	}
	start, end := v.index.At(lo).Offset, v.index.At(hi-1).End()
	if from, to := v.ahead.next(start, end-start, v.pitch()); from < to {
		v.prefetch(from, to, fetch.ReadAhead)
	}
}

// prefetchNeighbours fetches what lies beside the chunks from lo to hi, which were missed.
func (v *Image) prefetchNeighbours(lo, hi int) {
	window := v.early.neighbours(v.chunks.Product(), v.chunks.Demands()-(hi-lo))
	if window == 0 {
		return
	}
	start, end := v.index.At(lo).Offset, v.index.At(hi-1).End()
	from, to := spread(start, end, window, v.Size())
	v.prefetch(end, to, fetch.Neighbour)
	v.prefetch(from, start, fetch.Neighbour)
}

// Prefetch fetches the chunks of n bytes from off on, as far as they may stay in memory, and does not wait for them.
func (v *Image) Prefetch(_ context.Context, off, n int64) error {
	if err := v.check(off, n); err != nil {
		return err
	}
	v.prefetch(off, off+min(n, v.chunks.Memory()/2), fetch.ReadAhead)
	return nil
}

// prefetch fetches the chunks of the bytes from off to end, until memory takes no more.
func (v *Image) prefetch(off, end int64, p fetch.Priority) {
	if off < end {
		lo, hi := v.span(off, end-off)
		v.chunks.Prefetch(lo, hi, p)
	}
}

// Extents yields the lengths of the chunks' parts that make up n bytes from off on, and whether they are all zero, as
// the index tells. The range must lie within the image.
func (v *Image) Extents(off, n int64) iter.Seq2[int64, bool] {
	return func(yield func(int64, bool) bool) {
		for i, length := range v.parts(off, n) {
			if !yield(length, v.index.IsZero(i)) {
				return
			}
		}
	}
}

// Cached yields the lengths of the runs that make up n bytes from off on, and whether a read of them needs no
// store: they are zeros, on disk or in memory. The range must lie within the image.
func (v *Image) Cached(off, n int64) iter.Seq2[int64, bool] {
	return func(yield func(int64, bool) bool) {
		run, local := int64(0), false
		for i, length := range v.parts(off, n) {
			is := v.isLocal(i)
			if is != local && run > 0 {
				if !yield(run, local) {
					return
				}
				run = 0
			}
			run, local = run+length, is
		}
		if run > 0 {
			yield(run, local)
		}
	}
}

func (v *Image) isLocal(i int) bool {
	return v.index.IsZero(i) || v.disk != nil && v.disk.Has(i) || v.chunks.InMemory(v.index.At(i))
}

// parts yields the chunks that n bytes from off on lie in, and how many of the bytes each of them has.
func (v *Image) parts(off, n int64) iter.Seq2[int, int64] {
	return func(yield func(int, int64) bool) {
		for i := v.index.Find(off); n > 0; i++ {
			length := min(n, v.index.At(i).End()-off)
			if !yield(i, length) {
				return
			}
			off, n = off+length, n-length
		}
	}
}
