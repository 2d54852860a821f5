// Package view is an image that is not here yet, as bytes at offsets: a chunk is fetched when it is first
// read, once however many ask, proven by its store, and kept in memory for a while, and on disk if there is an
// image cache. What is likely to be read next is fetched before: what reads in order come to, what lies
// beside a chunk that was missed, what a profile of earlier reads tells, and in the end everything. Who waits is
// always served first. The package knows nothing of how the bytes are served.
package view

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math"
	"sync/atomic"
	"time"

	"cairn/blob"
	"cairn/blob/view/imagecache"
	"cairn/internal/bitset"
	"cairn/store"
)

// ForEver is a time that does not end.
const ForEver = time.Duration(math.MaxInt64)

// Options of an Image. The zero value is the plainest.
type Options struct {
	Name   string           // for messages
	Disk   *imagecache.File // where the image is kept; may be nil
	Around bool             // fetch what lies beside a chunk that is missed
	Hold   time.Duration    // how long a read waits for a store that is unavailable, which is asked again; 0 is not at all
	Record *Recorder        // is told of each chunk's first read; may be nil
}

// Image is an index's image, seen through a cache. Safe for concurrent use.
type Image struct {
	name   string
	index  *blob.Index
	source *Source
	disk   *imagecache.File
	hold   time.Duration
	record *Recorder
	ahead  readAhead
	count  counters

	// fresh are the chunks that were fetched before anybody asked, and not read yet; besideSet and foretoldSet are
	// those of them that came for that reason.
	fresh, besideSet, foretoldSet *bitset.Set
	freshCount                    atomic.Int64

	// The cache's mutex guards what follows.
	around  around
	widely  bool // fetch around
	trust   trust
	profile map[int]int // chunk to its place in the profile, while that is being fetched
	unread  int64       // bytes in memory that a feed brought and that were not read
	waits   map[*waiting]struct{}
	told    int // tenths of the filling that were told of
}

// waiting is a read that waits for a chunk.
type waiting struct {
	chunk int
	since time.Time
	entry *entry
}

// New is x's image with chunks from source.
func New(x *blob.Index, source *Source, o Options) *Image {
	n := x.Len()
	return &Image{
		name: o.Name, index: x, source: source, disk: o.Disk, hold: o.Hold, record: o.Record,
		ahead: readAhead{index: x, most: min(maxAhead, source.cache.limit/8)},
		fresh: bitset.New(n), besideSet: bitset.New(n), foretoldSet: bitset.New(n),
		around: newAround(), widely: o.Around, waits: map[*waiting]struct{}{},
	}
}

// Size is the image's length in bytes.
func (v *Image) Size() int64 { return v.index.Size() }

func (v *Image) key(c blob.Chunk) key { return key{c.Digest, c.Size, v.index.Algorithm()} }

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

// span are the chunks that n bytes from off on lie in; n is not 0.
func (v *Image) span(off, n int64) (lo, hi int) {
	lo = v.index.Find(off)
	for hi = lo + 1; v.index.At(hi-1).End() < off+n; hi++ {
	}
	return lo, hi
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
	n := int64(len(p))
	if err := v.check(off, n); err != nil {
		return err
	}
	if n == 0 {
		return nil
	}
	lo, hi := v.span(off, n)
	entries, missing := v.start(lo, hi)
	if from, to := v.ahead.next(off, n, v.pitch()); from < to {
		v.prefetch(from, to, ahead)
	} else if missing {
		v.neighbours(lo, hi)
	}
	v.touch(lo, hi)
	if err := v.fill(ctx, p, off, entries); err != nil {
		v.count.failures.Add(1)
		return err
	}
	v.answered(n)
	return nil
}

func (v *Image) answered(n int64) {
	v.count.reads.Add(1)
	v.count.wanted.Add(n)
}

// pitch is how far to read ahead of a stream at most: what the link holds, twice.
func (v *Image) pitch() int64 {
	c := v.source.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	return min(max(2*v.source.pace.product(), leastPitch), v.ahead.most)
}

// start sees to it that the chunks from lo to hi come, and returns what to wait for: nil for those that are
// on disk, or zeros. missing says that something was neither here nor on its way.
func (v *Image) start(lo, hi int) (entries []*entry, missing bool) {
	entries = make([]*entry, hi-lo)
	c := v.source.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := lo; i < hi; i++ {
		if v.index.IsZero(i) || v.disk != nil && v.disk.Has(i) {
			continue
		}
		w := v.want(i)
		missing = missing || c.chunks[w.key] == nil
		entries[i-lo] = c.start(w)
	}
	c.pump()
	return entries, missing
}

func (v *Image) want(i int) wanted { return wanted{v.key(v.index.At(i)), home{v, i}} }

// fill copies the image's bytes from off on to p, as they come.
func (v *Image) fill(ctx context.Context, p []byte, off int64, entries []*entry) error {
	first := v.index.Find(off)
	onDisk := 0 // bytes of p that are already there
	for part := range v.pieces(off, int64(len(p))) {
		i := part.number - first
		dst := p[:part.size]
		switch {
		case onDisk > 0:
			onDisk -= len(dst)
		case entries[i] != nil:
			if err := v.copyFrom(ctx, entries[i], part, dst); err != nil {
				return err
			}
		case v.index.IsZero(part.number):
			clear(dst)
		default:
			n, err := v.readDisk(ctx, p, part, entries[i:])
			if err != nil {
				return err
			}
			onDisk = n - len(dst)
		}
		p = p[part.size:]
	}
	return nil
}

// readDisk fills p from the image's file, as far as the chunks from part on are there one after the other, and
// returns how far. What has gone from there meanwhile is fetched.
func (v *Image) readDisk(ctx context.Context, p []byte, part piece, entries []*entry) (int, error) {
	at := part.chunk.Offset + part.from
	n, hi := part.size, part.number+1
	for hi-part.number < len(entries) && entries[hi-part.number] == nil && n < int64(len(p)) && v.disk.Has(hi) {
		n = min(v.index.At(hi).End()-at, int64(len(p)))
		hi++
	}
	if v.disk.Read(p[:n], at, part.number, hi) {
		return int(n), nil
	}
	again, _ := v.start(part.number, part.number+1)
	if again[0] == nil { // it came back
		if v.disk.Read(p[:part.size], at, part.number, part.number+1) {
			return int(part.size), nil
		}
		again[0] = v.startAnyway(part.number)
	}
	return int(part.size), v.copyFrom(ctx, again[0], part, p[:part.size])
}

// startAnyway has a chunk fetched into memory, whatever the disk says.
func (v *Image) startAnyway(i int) *entry {
	c := v.source.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.start(v.want(i))
	c.pump()
	return e
}

// copyFrom waits for a chunk and copies a part of it. When another image's store failed to bring it, this image's is
// asked. So is it again when the fetch had begun before anybody waited: what it failed on may be mended by now.
func (v *Image) copyFrom(ctx context.Context, e *entry, part piece, dst []byte) error {
	data, err := v.wait(ctx, e, part.number)
	if err != nil && v.mayDoBetter(e) && ctx.Err() == nil {
		data, err = v.wait(ctx, v.startAnyway(part.number), part.number)
	}
	if err != nil {
		return fmt.Errorf("the image's bytes at %d: %w", part.chunk.Offset, err)
	}
	copy(dst, data[part.from:])
	return nil
}

// mayDoBetter says whether this image's store, asked now, may bring what an entry did not.
func (v *Image) mayDoBetter(e *entry) bool {
	c := v.source.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	return e.source != v.source || e.early
}

// errStall is the cause of a wait that took too long.
var errStall = errors.New("the store did not answer in time")

// wait returns an entry's bytes, which must not be changed. Giving up does not end the fetch. An entry may have failed
// because nobody waited for it just then: a read of several chunks waits for one after the other.
func (v *Image) wait(ctx context.Context, e *entry, chunk int) ([]byte, error) {
	select {
	case <-e.ready:
		if !v.holds(e.err) {
			return e.data, e.err
		}
	default:
	}
	if v.hold > 0 && v.hold < ForEver {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, v.hold, errStall)
		defer cancel()
	}
	for {
		data, err := v.await(ctx, e, chunk)
		if ctx.Err() != nil || !v.holds(err) {
			return data, err
		}
		e = v.startAnyway(chunk)
	}
}

// holds says whether a read waits for a store that failed like this.
func (v *Image) holds(err error) bool {
	return v.hold > 0 && errors.Is(err, store.ErrUnavailable) && v.source.cache.ctx.Err() == nil
}

// await returns an entry's bytes, or why it failed.
func (v *Image) await(ctx context.Context, e *entry, chunk int) ([]byte, error) {
	w := v.stall(e, chunk)
	defer v.unstall(w)
	select {
	case <-e.ready:
		return e.data, e.err
	case <-ctx.Done():
		return nil, v.gaveUp(ctx, e)
	}
}

// gaveUp is why a wait ended.
func (v *Image) gaveUp(ctx context.Context, e *entry) error {
	if context.Cause(ctx) != errStall { //nolint:errorlint // this very value is set above
		return ctx.Err()
	}
	c := v.source.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.away != nil {
		return fmt.Errorf("%w (%v): %w", errStall, v.hold, e.away)
	}
	return fmt.Errorf("%w (%v)", errStall, v.hold)
}

func (v *Image) stall(e *entry, chunk int) *waiting {
	v.count.stalls.Add(1)
	w := &waiting{chunk, time.Now(), e}
	c := v.source.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	v.waits[w] = struct{}{}
	e.waiting++
	if v.hold > 0 {
		e.held++
	}
	return w
}

func (v *Image) unstall(w *waiting) {
	v.count.stallFor.Add(int64(time.Since(w.since)))
	c := v.source.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(v.waits, w)
	w.entry.waiting--
	if v.hold > 0 {
		w.entry.held--
	}
}

// ReadResident fills p like ReadAt if that takes no waiting, and says whether it did. It does not allocate,
// unless it comes to a chunk that was fetched ahead for the first time.
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
	case v.readPieces(p, off):
		v.count.memoryHits.Add(1)
	default:
		return false
	}
	v.answered(n)
	v.touch(lo, hi)
	return true
}

// readPieces fills p from memory, zeros and, in part, the disk, if all is there.
func (v *Image) readPieces(p []byte, off int64) bool {
	for part := range v.pieces(off, int64(len(p))) {
		dst := p[:part.size]
		p = p[part.size:]
		if v.index.IsZero(part.number) {
			clear(dst)
			continue
		}
		if data := v.source.cache.here(v.key(part.chunk)); data != nil {
			copy(dst, data[part.from:])
			if v.disk != nil {
				v.disk.Offer(part.number, data) // it was too busy when the chunk came
			}
			continue
		}
		i := part.number
		if v.disk == nil || !v.disk.ReadNow(dst, part.chunk.Offset+part.from, i, i+1) {
			return false
		}
	}
	return true
}

// touch takes note that chunks were read.
func (v *Image) touch(lo, hi int) {
	if v.record != nil {
		for i := lo; i < hi; i++ {
			v.record.touch(i)
		}
	}
	if v.freshCount.Load() == 0 {
		return
	}
	for ; lo < hi && !v.fresh.Has(lo); lo++ {
	}
	if lo < hi {
		v.used(lo, hi)
	}
}

// used takes note of the first read of chunks that were fetched ahead: it was right to do so, and goes on there,
// unless a profile had them fetched, which knows better what comes next.
func (v *Image) used(lo, hi int) {
	told := false
	for i := lo; i < hi; i++ {
		if v.fresh.Remove(i) {
			v.freshCount.Add(-1)
			told = v.credit(i, v.index.At(i)) || told
		}
	}
	start, end := v.index.At(lo).Offset, v.index.At(hi-1).End()
	if told {
		return
	}
	if from, to := v.ahead.next(start, end-start, v.pitch()); from < to {
		v.prefetch(from, to, ahead)
	}
}

// credit gives credit to what had a chunk fetched ahead, and says whether that was a profile.
func (v *Image) credit(i int, chunk blob.Chunk) (told bool) {
	v.count.aheadUsed.Add(chunk.Size)
	c := v.source.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	if v.besideSet.Remove(i) {
		v.around.wanted(chunk.Size)
	}
	if told = v.foretoldSet.Remove(i); told {
		v.trust.note(true)
	}
	if e := c.chunks[v.key(chunk)]; e != nil && e.unread {
		e.unread = false
		e.first.image.unread -= chunk.Size
		c.pump()
	}
	return told
}

// missed takes note that a chunk is demanded that is neither here nor on its way. The caller holds the cache's
// mutex.
func (v *Image) missed(i int) {
	if v.profile == nil {
		return
	}
	place, known := v.profile[i]
	if !known || place-v.cursor() > soon {
		v.trust.note(false)
	}
}

// soon is how many chunks ahead of what was fetched of a profile a read may be and not speak against it.
const soon = 256

// expect takes note that a chunk is fetched before anybody asks. The caller holds the cache's mutex.
func (v *Image) expect(i int, r rank) {
	if r == filling {
		return
	}
	size := v.index.At(i).Size
	v.count.ahead.Add(size)
	if v.fresh.Add(i) {
		v.freshCount.Add(1)
	}
	switch r {
	case beside:
		v.besideSet.Add(i)
		v.around.fetched(size)
	case foretold:
		v.foretoldSet.Add(i)
	}
}

// came takes note of where a chunk came from. The caller holds the cache's mutex.
func (v *Image) came(from tier, e *entry) {
	switch from {
	case fromDisk:
		v.count.proven.Add(1)
	case fromOther:
		v.count.copied.Add(1)
	default:
		v.count.fetched.Add(1)
		v.count.fetchedBytes.Add(e.key.size)
	}
}

// lost takes note that a chunk could not be had.
func (v *Image) lost(i int) {
	if v.fresh.Remove(i) {
		v.freshCount.Add(-1)
	}
}

// neighbours fetches what lies beside the chunks from lo to hi, which were missed.
func (v *Image) neighbours(lo, hi int) {
	c := v.source.cache
	c.mu.Lock()
	window := int64(0)
	if v.widely {
		window = v.around.window(v.source.pace.product(), v.source.demands-(hi-lo))
	}
	c.mu.Unlock()
	if window == 0 {
		return
	}
	start, end := v.index.At(lo).Offset, v.index.At(hi-1).End()
	from, to := spread(start, end, window, v.Size())
	v.prefetch(end, to, beside)
	v.prefetch(from, start, beside)
}

// Prefetch starts to fetch the chunks of n bytes from off on, as far as they may stay in the cache, and
// does not wait for them.
func (v *Image) Prefetch(_ context.Context, off, n int64) error {
	if err := v.check(off, n); err != nil {
		return err
	}
	v.prefetch(off, off+min(n, v.source.cache.limit/2), ahead)
	return nil
}

// prefetch starts to fetch the chunks from off to end, until the cache takes no more.
func (v *Image) prefetch(off, end int64, r rank) {
	var list []wanted
	for part := range v.pieces(off, end-off) {
		if w, ok := v.absent(part.number); ok {
			list = append(list, w)
		}
	}
	v.source.cache.prefetch(list, r)
}

// absent is chunk i as it is wanted, unless it is zero or on disk.
func (v *Image) absent(i int) (wanted, bool) {
	if v.index.IsZero(i) || v.disk != nil && v.disk.Has(i) {
		return wanted{}, false
	}
	return v.want(i), true
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

func (v *Image) log() *slog.Logger { return v.source.cache.limits.Log }
