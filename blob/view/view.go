// Package view reads a remote image at any offset. A chunk is fetched on its first read, from a seed or a store, and
// kept in memory, and on disk if there is an image cache. Chunks that are likely to be read next are prefetched: those ahead of sequential
// reads, the neighbours of a missed chunk, the chunks of a boot profile, and on request all chunks. The package
// decides what to fetch; blob/view/fetch does it. It does not know how the bytes are served.
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

// Disk is a disk cache of one image. It must be safe for concurrent use. *imagecache.File implements it.
type Disk interface {
	fetch.Disk
	// ReadNow fills p with the bytes at off, which lie in the chunks [lo, hi). It reports false if a chunk is
	// missing, or the read would block on the disk. It does not allocate.
	ReadNow(p []byte, off int64, lo, hi int) bool
	// Read is like ReadNow, but blocks until the disk answers.
	Read(p []byte, off int64, lo, hi int) bool
	// Wants reports whether chunk i is missing and the disk would keep it.
	Wants(i int) bool
	// Queued reports whether chunk i is queued or being written.
	Queued(i int) bool
	// Pin makes chunk i one of the last to be evicted.
	Pin(i int)
	// Missing returns how many chunks the disk lacks or has not verified.
	Missing() int
	// Room reports whether there is room for prefetched chunks.
	Room() bool
	// Path returns the directory of the image, for the log.
	Path() string
	Close() error
}

// Options of an Image. The zero value has no disk and prefetches only ahead of sequential reads.
type Options struct {
	Name   string        // for error messages and the log
	Disk   Disk          // disk cache of the image; may be nil
	Around bool          // prefetch the neighbours of a missed chunk
	Hold   time.Duration // time limit of a read's retries while the store is unavailable; 0 fails at once
	Record *Recorder     // records the first read of each chunk; may be nil
	Log    *slog.Logger  // for the progress of Fill; nil logs nothing
}

// Image is the image of an index. Safe for concurrent use.
type Image struct {
	name       string
	index      *blob.Index
	chunks     *fetch.Client
	disk       Disk // may be nil
	record     *Recorder
	log        *slog.Logger
	ahead      readAhead
	tracker    *prefetchTracker
	neighbours bool // prefetch the neighbours of missed chunks
	count      counters
}

// New returns x's image, whose chunks come from source. The memory of the source's Cache limits the prefetches of all
// its images.
func New(x *blob.Index, source *fetch.Source, o Options) *Image {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	v := &Image{
		name: o.Name, index: x, disk: o.Disk, record: o.Record, log: o.Log,
		tracker: newPrefetchTracker(x, o.Disk), neighbours: o.Around,
	}
	v.chunks = fetch.NewClient(source, x, fetch.ClientOptions{Name: o.Name, Disk: o.Disk, Hold: o.Hold, Observer: v.tracker})
	v.ahead = readAhead{index: x, most: min(maxAhead, v.chunks.Memory()/8)}
	return v
}

// Size returns the image's length in bytes.
func (v *Image) Size() int64 { return v.index.Size() }

// Close stops the prefetches of Follow and Fill, and closes the image's disk. Reads remain possible, without the
// disk.
func (v *Image) Close() error {
	v.chunks.StopFeeds()
	if v.disk == nil {
		return nil
	}
	return v.disk.Close()
}

func (v *Image) checkRange(off, n int64) error {
	if off < 0 || n < 0 || off > v.Size()-n {
		return fmt.Errorf("%d bytes at %d are not within the image's %d", n, off, v.Size())
	}
	return nil
}

// chunkRange returns the chunks [lo, hi) that hold the n > 0 bytes at off.
func (v *Image) chunkRange(off, n int64) (lo, hi int) {
	lo = v.index.Find(off)
	for hi = lo + 1; v.index.At(hi-1).End() < off+n; hi++ {
	}
	return lo, hi
}

// ReadAt fills p with the image's bytes at off. It fetches all missing chunks of the range at once, and prefetches
// the following chunks if the reads are sequential, or else the neighbours of a missed chunk if Options ask for them.
// It blocks until all bytes are available. It fails if the range is not within the image, ctx ends, or a fetch fails
// with an error of store.Getter.
func (v *Image) ReadAt(ctx context.Context, p []byte, off int64) error {
	n := int64(len(p))
	if err := v.checkRange(off, n); err != nil || n == 0 {
		return err
	}
	lo, hi := v.chunkRange(off, n)
	entries, missing := v.chunks.Request(lo, hi)
	if from, to := v.ahead.noteRead(off, n, v.readAheadLimit()); from < to {
		v.prefetchRange(from, to, fetch.ReadAhead)
	} else if missing && v.neighbours {
		v.prefetchNeighbours(lo, hi)
	}
	v.noteRead(lo, hi)
	if err := v.copyChunks(ctx, p, off, lo, entries); err != nil {
		v.count.failures.Add(1)
		return err
	}
	v.count.countRead(n)
	return nil
}

// readAheadLimit returns the largest read-ahead of a stream in bytes: twice the link's bandwidth-delay product.
func (v *Image) readAheadLimit() int64 { return max(2*v.chunks.Product(), minAheadLimit) }

// copyChunks fills p with the image's bytes at off. entries are those that Request returned for the chunks from lo
// on.
func (v *Image) copyChunks(ctx context.Context, p []byte, off int64, lo int, entries []*fetch.Entry) error {
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
				err = v.rereadChunk(ctx, dst, off, i)
			}
		}
		if err != nil {
			return err
		}
		p, off, i = p[len(dst):], off+int64(len(dst)), next
	}
	return nil
}

// rereadChunk fills p with a part of chunk i, which the disk lost after Request.
func (v *Image) rereadChunk(ctx context.Context, p []byte, off int64, i int) error {
	entries, _ := v.chunks.Request(i, i+1)
	e := entries[0]
	if e == nil { // the disk has the chunk again
		if v.disk.Read(p, off, i, i+1) {
			return nil
		}
		e = v.chunks.Refetch(i)
	}
	return v.copyChunk(ctx, p, off, e, i)
}

// copyChunk blocks until e has chunk i, and fills p with its bytes at the image's offset off.
func (v *Image) copyChunk(ctx context.Context, p []byte, off int64, e *fetch.Entry, i int) error {
	start := v.index.At(i).Offset
	data, err := v.chunks.Wait(ctx, e, i)
	if err != nil {
		return fmt.Errorf("the image's bytes at %d: %w", start, err)
	}
	copy(p, data[off-start:])
	return nil
}

// ReadResident fills p like ReadAt if it need not block, and reports whether it did. It does not allocate, unless it
// is the first read of a prefetched chunk.
func (v *Image) ReadResident(p []byte, off int64) bool {
	n := int64(len(p))
	if v.checkRange(off, n) != nil {
		return false
	}
	if n == 0 {
		return true
	}
	lo, hi := v.chunkRange(off, n)
	switch {
	case v.disk != nil && v.disk.ReadNow(p, off, lo, hi):
		v.count.diskHits.Add(1)
	case v.readCached(p, off, lo, hi):
		v.count.memoryHits.Add(1)
	default:
		return false
	}
	v.count.countRead(n)
	v.noteRead(lo, hi)
	return true
}

// readCached fills p from chunks in memory, zeros and chunks on disk. It reports false if it would block.
func (v *Image) readCached(p []byte, off int64, lo, hi int) bool {
	for i := lo; i < hi; i++ {
		c := v.index.At(i)
		dst := p[:min(int64(len(p)), c.End()-off)]
		if v.index.IsZero(i) {
			clear(dst)
		} else if data := v.chunks.Lookup(c); data != nil {
			copy(dst, data[off-c.Offset:])
			if v.disk != nil {
				v.disk.Offer(i, data) // the disk refused it after the fetch, as its queue was full
			}
		} else if v.disk == nil || !v.disk.ReadNow(dst, off, i, i+1) {
			return false
		}
		p, off = p[len(dst):], off+int64(len(dst))
	}
	return true
}

// noteRead records a read of the chunks [lo, hi).
func (v *Image) noteRead(lo, hi int) {
	if v.record != nil {
		for i := lo; i < hi; i++ {
			v.record.recordRead(i)
		}
	}
	if lo = v.tracker.nextUnread(lo, hi); lo < hi {
		v.notePrefetchHits(lo, hi)
	}
}

// notePrefetchHits records the first read of prefetched chunks, and continues the read-ahead after them. There is no
// read-ahead if one of them was prefetched for the profile, which predicts the next reads better.
func (v *Image) notePrefetchHits(lo, hi int) {
	profiled := false
	for i := lo; i < hi; i++ {
		if hit, byProfile := v.tracker.noteRead(i); hit {
			v.chunks.MarkRead(v.index.At(i))
			profiled = profiled || byProfile
		}
	}
	if profiled {
		return
	}
	start, end := v.index.At(lo).Offset, v.index.At(hi-1).End()
	if from, to := v.ahead.noteRead(start, end-start, v.readAheadLimit()); from < to {
		v.prefetchRange(from, to, fetch.ReadAhead)
	}
}

// prefetchNeighbours prefetches the neighbours of the missed chunks [lo, hi).
func (v *Image) prefetchNeighbours(lo, hi int) {
	window := v.tracker.neighbourWindow(v.chunks.Product(), v.chunks.Demands()-(hi-lo))
	if window == 0 {
		return
	}
	start, end := v.index.At(lo).Offset, v.index.At(hi-1).End()
	from, to := splitWindow(start, end, window, v.Size())
	for _, r := range [][2]int64{{end, to}, {from, start}} {
		if r[0] < r[1] {
			from, to := v.chunkRange(r[0], r[1]-r[0])
			v.chunks.PrefetchNeighbours(from, to, lo)
		}
	}
}

// Prefetch starts to fetch the chunks of the n bytes at off, up to half of the memory, and returns at once. It fails
// if the range is not within the image.
func (v *Image) Prefetch(_ context.Context, off, n int64) error {
	if err := v.checkRange(off, n); err != nil {
		return err
	}
	v.prefetchRange(off, off+min(n, v.chunks.Memory()/2), fetch.ReadAhead)
	return nil
}

// prefetchRange prefetches the chunks of the bytes [off, end), as far as memory allows.
func (v *Image) prefetchRange(off, end int64, p fetch.Priority) {
	if off < end {
		lo, hi := v.chunkRange(off, end-off)
		v.chunks.Prefetch(lo, hi, p)
	}
}

// Extents splits the n bytes at off at the chunks' boundaries. It yields the length of each part, and whether the
// index says that the part is all zeros. The range must be within the image.
func (v *Image) Extents(off, n int64) iter.Seq2[int64, bool] {
	return func(yield func(int64, bool) bool) {
		for i, length := range v.chunkParts(off, n) {
			if !yield(length, v.index.IsZero(i)) {
				return
			}
		}
	}
}

// Tier is where the bytes of a chunk are.
type Tier uint8

// The tiers.
const (
	InStore Tier = iota
	InDelta      // a delta may make them, with fewer bytes from a server than the store sends
	InSeed       // a seed may have them, not verified yet
	Local        // in memory, on disk, or zeros
)

func (v *Image) tierOf(i int) Tier {
	c := v.index.At(i)
	switch {
	case v.index.IsZero(i) || v.disk != nil && v.disk.Has(i) || v.chunks.InMemory(c):
		return Local
	case v.chunks.InSeed(c):
		return InSeed
	case v.chunks.InDelta(c):
		return InDelta
	}
	return InStore
}

// Tiers splits the n bytes at off into runs of one tier. It yields the length and the tier of each run. A read of
// InSeed and Local bytes does not need the store. The range must be within the image.
func (v *Image) Tiers(off, n int64) iter.Seq2[int64, Tier] {
	return func(yield func(int64, Tier) bool) {
		run, tier := int64(0), InStore
		for i, length := range v.chunkParts(off, n) {
			is := v.tierOf(i)
			if is != tier && run > 0 {
				if !yield(run, tier) {
					return
				}
				run = 0
			}
			run, tier = run+length, is
		}
		if run > 0 {
			yield(run, tier)
		}
	}
}

// chunkParts yields the chunks that hold the n bytes at off, and how many of the bytes each chunk holds.
func (v *Image) chunkParts(off, n int64) iter.Seq2[int, int64] {
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
