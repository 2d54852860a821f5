// Package assemble writes an image onto a target. It keeps the chunks that are in place, reads those
// that a seed has, and fetches the rest. Every byte is hashed before it is written. The package opens
// no files, and does not know how stores work or where seeds come from. The caller supplies the target,
// the store and the progress function.
package assemble

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"cairn/blob"
	"cairn/internal/bitset"
	"cairn/seed"
	"cairn/store"
)

// Target is the destination of an image: a device, a partition of a disk image, or a new file. It has
// room for the image. Its methods may be called concurrently for ranges that do not overlap.
type Target interface {
	io.ReaderAt
	io.WriterAt
	// Zero makes the n bytes from off on read as zeros.
	Zero(off, n int64) error
	// Sync flushes all written bytes to the medium. It returns an error if any of them may be lost.
	Sync() error
}

// Pacer is a Target that can start the writeback of written bytes without waiting for it.
type Pacer interface{ StartWriteback(off, n int64) error }

// Rereader is a Target that can be read past all caches.
type Rereader interface {
	// ReadBack reads bytes from the medium, as io.ReaderAt does. It is called after Sync, by several
	// goroutines concurrently.
	ReadBack(p []byte, off int64) (int, error)
}

// Cloner is a new file that can share bytes with a seed instead of holding a copy.
type Cloner interface {
	// Clone shares bytes of from, beginning at offset at, with the n bytes of the target from off on.
	// It returns the shared range [lo, hi) of the target; lo = hi means that nothing was shared. The
	// target's byte at lo is the byte of from at offset at+lo-off. Later writes to the seed do not
	// change the target.
	Clone(from io.ReaderAt, at, off, n int64) (lo, hi int64)
}

// Extent selects the chunks that are read back from the medium and compared before a run ends.
type Extent uint8

const (
	Nothing Extent = iota
	Changed        // the written or zeroed chunks
	All            // the whole image
)

// ErrMedium reports that the target reads back other bytes than were written to it.
var ErrMedium = errors.New("the medium does not hold what was written")

// Options are the settings of Run, Preview and Stream. The zero value suits a device.
type Options struct {
	// New reports that the target is a new file without users. It reads as zeros, its content is not
	// read, and its head needs no protection while the image is incomplete.
	New bool
	// Segments limits how many runs of chunks are assembled concurrently; Memory may lower it. 0 means
	// 4, or 6 for a new file, or 12 for a stream. If it is 0 and Far is set, there are four times as
	// many segments of a quarter of the size.
	Segments int
	// Far reports that the store has a high latency. More segments are assembled concurrently then. Unless
	// Own is set, one goroutine of Run begins with the chunks that need no store.
	Far bool
	// Memory limits the buffers, in bytes. A segment takes at most a sixteenth of it and at most 4 MiB, unless a
	// single chunk is larger. 0 means 32 MiB.
	Memory int64
	// Own is one more than the number of the seed that is the target's own old content; 0 means none.
	// Its chunks are used until they are overwritten. The image is written in the direction that
	// overwrites fewer of them too early.
	Own int
	// Verify selects the chunks to read back at the end.
	Verify Extent
	// ImageSum is the SHA-256 that the whole image must have; nil if it is not known. Another sum is an
	// *ImageSumError: the head is not written, and a stream is not completed.
	ImageSum *ImageSum
	// Inspect is called with the verified first chunk of the image before the target is changed. It is
	// not called for a chunk of zeros. An error ends the run. May be nil.
	Inspect func(first []byte) error
	// Changing is called once, before the first change of the target. An error ends the run. May be
	// nil.
	Changing func() error
	// Delta gets the chunks that the plan makes from a delta. Those that it fails to get are fetched. It is
	// needed if the plan has such chunks.
	Delta store.Getter
	// Stream makes Preview predict Stream instead of Run.
	Stream bool
	// Progress is called after each segment, never concurrently. May be nil.
	Progress func(Stats)
}

// Stats are the image's bytes by source, and other counts. The sources add up to Done.
type Stats struct {
	Size      int64   `json:"size"`           // of the image, bytes
	Done      int64   `json:"done"`           // image bytes that are verified on the target
	InPlace   int64   `json:"in_place_bytes"` // not written, since the target held them
	InPlaces  int64   `json:"in_place_chunks"`
	Zero      int64   `json:"zero_bytes"`   // zeroed on the target, without data
	Seeds     []int64 `json:"seed_bytes"`   // read from each seed
	Copied    int64   `json:"copied_bytes"` // copied from elsewhere in the image
	Delta     int64   `json:"delta_bytes"`  // made from a delta and a seed
	Deltas    int64   `json:"delta_chunks"`
	Fetched   int64   `json:"fetched_bytes"` // fetched from the store; plain size
	Fetches   int64   `json:"fetched_chunks"`
	SeedMiss  int64   `json:"seed_misses"`   // chunks that a seed did not hold, contrary to its index
	DeltaMiss int64   `json:"delta_misses"`  // chunks that the delta did not give, contrary to the plan
	Written   int64   `json:"written_bytes"` // data written to the target
}

// headSize is the part of an image by which file systems and boot loaders recognise it, in bytes. The
// superblocks of squashfs, ext4, erofs, xfs and btrfs lie in the first 128 KiB.
const headSize = 128 << 10

// The superblock blocks of the head are invalidated first and written last. None of these file systems
// mounts without its own. Today's media write one block whole or not at all when the power fails.
const (
	superblockSize  = 4 << 10
	btrfsSuperblock = 64 << 10 // offset of the superblock of btrfs; all others have it in the first block
)

// maxSegment limits the bytes of a segment, unless a single chunk is larger. Little memory lowers it.
// flushEvery limits the written bytes that a power cut may lose.
const (
	maxSegment = 4 << 20
	flushEvery = 32 << 20
)

// Run writes the plan's image onto t. The head is all chunks that overlap the first 128 KiB. It is
// invalidated before anything else changes, and written when everything else is on the medium, so an
// incomplete target never looks complete. A target that already holds the image is not written. When
// Run returns nil, the image is on the medium. After an error, another Run reuses the chunks that are
// on the target.
func Run(ctx context.Context, p *seed.Plan, from store.Getter, t Target, o Options) (Stats, error) {
	j := newJob(p, from, t, o)
	if err := j.run(ctx); err != nil {
		return j.stats(), err
	}
	return j.stats(), ctx.Err()
}

type job struct {
	plan    *seed.Plan
	from    store.Getter
	target  Target
	options Options
	heads   int         // number of chunks that overlap the head
	changes *bitset.Set // the written or zeroed chunks

	mu        sync.Mutex // guards the fields up to idle
	order     order      // of the segments
	copyLater []int      // chunks to copy from elsewhere on the target
	idle      []*segment // finished segments, whose buffers are reused

	streamRepeats *repeats  // of a stream; nil if the target can be read
	streamSum     hash.Hash // of the written part of a stream; used by the segment whose turn it is; nil for none

	flushMu   sync.Mutex // held during a flush before the end
	unflushed atomic.Int64

	invalidate    sync.Once // invalidates the head
	invalidateErr error
	changed       atomic.Bool // reports that the target was changed

	progressMu sync.Mutex // held while Progress is called
	counters   counters
	sources    []seed.Step // the source of each chunk; nil except in a preview
}

// counters are the running counts of Stats.
type counters struct {
	kinds                    [seed.InPlace + 1]atomic.Int64 // bytes
	seeds                    []atomic.Int64                 // bytes
	fetches, misses, written atomic.Int64
	inPlaces                 atomic.Int64 // chunks
	deltas, deltaMisses      atomic.Int64
}

func newJob(p *seed.Plan, from store.Getter, t Target, o Options) *job {
	segment, repeats := o.setDefaults()
	j := &job{plan: p, from: from, target: t, options: o}
	j.heads = headChunks(p.Index)
	j.order = newOrder(p, j.heads, p.Index.Len(), segment, o.Own-1)
	if o.Far && !o.Stream && !j.order.inTurn {
		j.order.splitLocalRuns()
	}
	j.changes = bitset.New(p.Index.Len())
	j.counters.seeds = make([]atomic.Int64, len(p.Seeds))
	if o.Stream {
		j.streamRepeats = planRepeats(p, 0, p.Index.Len(), repeats)
		if o.ImageSum != nil {
			j.streamSum = sha256.New()
		}
	}
	return j
}

// setDefaults resolves Segments. It returns the size of a segment and the size of a stream's cache of
// repeated chunks, both in bytes.
func (o *Options) setDefaults() (segment, repeats int64) {
	room := cmp.Or(max(o.Memory, 0), 32<<20)
	if o.Stream {
		repeats = room / 4
		room -= repeats
	}
	segment = min(maxSegment, max(room/16, 64<<10))
	buffers := int64(2)
	if o.New {
		buffers = 1 // the target's old content is not read
	}
	if o.Segments <= 0 {
		o.Segments = 4
		switch {
		case o.Stream: // most of them wait for their turn
			o.Segments = 12
		case o.New:
			o.Segments = 6
		}
		if o.Far {
			o.Segments, segment = 4*o.Segments, segment/4
		}
	}
	o.Segments = int(max(min(int64(o.Segments), room/buffers/segment), 1))
	return segment, repeats
}

// headChunks returns the number of chunks that overlap the first headSize bytes.
func headChunks(x *blob.Index) int {
	if x.Size() <= headSize {
		return x.Len()
	}
	return x.Find(headSize-1) + 1
}

func (j *job) stats() Stats {
	c := &j.counters
	s := Stats{
		Size: j.plan.Index.Size(), InPlace: c.kinds[seed.InPlace].Load(), Zero: c.kinds[seed.Zero].Load(),
		Copied: c.kinds[seed.Copy].Load(), Fetched: c.kinds[seed.Fetch].Load(), Fetches: c.fetches.Load(),
		SeedMiss: c.misses.Load(), Written: c.written.Load(), Seeds: make([]int64, len(c.seeds)),
		InPlaces: c.inPlaces.Load(), Delta: c.kinds[seed.Delta].Load(), Deltas: c.deltas.Load(), DeltaMiss: c.deltaMisses.Load(),
	}
	s.Done = s.InPlace + s.Zero + s.Copied + s.Delta + s.Fetched
	for i := range c.seeds {
		s.Seeds[i] = c.seeds[i].Load()
		s.Done += s.Seeds[i]
	}
	return s
}

// run gathers the head and holds it in memory, assembles the rest, and then commits the head.
func (j *job) run(ctx context.Context) error {
	head := j.acquireSegment()
	head.setRange(0, j.heads)
	if err := head.gather(ctx); err != nil {
		return err
	}
	if err := j.inspectHead(head); err != nil {
		return err
	}
	if err := j.assembleBody(ctx); err != nil {
		return err
	}
	if err := j.copyRepeats(ctx, head); err != nil {
		return err
	}
	if j.changed.Load() || !head.inPlace() {
		return j.commitHead(ctx, head)
	}
	if err := j.syncTarget(); err != nil { // an interrupted run may have written it without a flush
		return err
	}
	head.countDone()
	if err := j.readBack(ctx, head.lo, head.hi); err != nil {
		return err
	}
	return j.verifyBody(ctx, head)
}

func (j *job) inspectHead(head *segment) error {
	if j.options.Inspect == nil || head.hi == 0 || *head.state(0) == zero {
		return nil
	}
	return j.options.Inspect(head.finalBytes(0))
}

// assembleBody assembles all segments after the head.
func (j *job) assembleBody(ctx context.Context) error {
	return j.forEachSegment(ctx, &j.order, func(ctx context.Context, s *segment) error {
		if err := s.gather(ctx); err != nil {
			if s.turn != nil { // other segments still read the bytes that this one would overwrite
				return err
			}
			return errors.Join(err, s.writeChunks()) // fetched chunks are not fetched again by the next run
		}
		if err := s.writeChunks(); err != nil {
			return err
		}
		return j.flushSome()
	})
}

// forEachSegment calls do for all segments of an order, several concurrently.
func (j *job) forEachSegment(ctx context.Context, o *order, do func(context.Context, *segment) error) error {
	group, ctx := errgroup.WithContext(ctx)
	for n := range j.options.Segments {
		group.Go(func() error {
			s := j.acquireSegment()
			defer j.releaseSegment(s)
			for ctx.Err() == nil && j.assignNext(o, s, n == 0) {
				if err := do(ctx, s); err != nil {
					return err
				}
				s.countDone()
			}
			return ctx.Err()
		})
	}
	return group.Wait()
}

// assignNext assigns the next segment of the order to s. It reports whether there was one.
func (j *job) assignNext(o *order, s *segment, localFirst bool) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	lo, hi, turn := o.nextRun(localFirst)
	if lo < hi {
		s.setRange(lo, hi)
		s.turn = turn
	}
	return lo < hi
}

// acquireSegment returns an idle segment or a new one. The reuse lets the final read-back allocate no
// second set of buffers.
func (j *job) acquireSegment() *segment {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := len(j.idle)
	if n == 0 {
		return &segment{job: j}
	}
	s := j.idle[n-1]
	j.idle = j.idle[:n-1]
	return s
}

// releaseSegment makes s idle, for the next acquireSegment.
func (j *job) releaseSegment(s *segment) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.idle = append(j.idle, s)
}

// copyRepeats writes the chunks that repeat an earlier one, which is on the target by now. Those that
// repeat a chunk of the head are copied from memory.
func (j *job) copyRepeats(ctx context.Context, head *segment) error {
	s := j.acquireSegment()
	defer j.releaseSegment(s)
	for _, i := range j.copyLater {
		if err := ctx.Err(); err != nil {
			return err
		}
		s.setRange(i, i+1)
		if err := s.copyFrom(ctx, j.plan.First(i), head); err != nil {
			return err
		}
		if err := s.writeChunks(); err != nil {
			return err
		}
		s.countDone()
	}
	return ctx.Err()
}

// beginChange is called before each change of the target. The first call invalidates the head durably,
// so that no power cut leaves a mix of two images that looks like one of them.
func (j *job) beginChange() error {
	j.invalidate.Do(func() {
		j.changed.Store(true)
		if j.options.Changing != nil {
			if j.invalidateErr = j.options.Changing(); j.invalidateErr != nil {
				return
			}
		}
		if j.options.New || j.heads == 0 {
			return
		}
		j.invalidateErr = j.invalidateHead()
	})
	return j.invalidateErr
}

// invalidateHead zeroes the head durably. It begins with the superblocks, so that a partly zeroed head
// is not recognised.
func (j *job) invalidateHead() error {
	zeros := make([]byte, min(headSize, j.plan.Index.Size()))
	superblocks, others := splitHead(len(zeros))
	if err := j.writeParts(zeros, append(slices.Clone(superblocks), others...)); err != nil {
		return fmt.Errorf("making the old head invalid: %w", err)
	}
	return nil
}

// span is the range [lo, hi) of bytes of the head.
type span struct{ lo, hi int }

// splitHead divides n bytes of head into the superblocks and the rest. No returned span is empty.
func splitHead(n int) (superblocks, others []span) {
	for _, s := range []span{{0, superblockSize}, {btrfsSuperblock, btrfsSuperblock + superblockSize}} {
		superblocks = appendClipped(superblocks, s, n)
	}
	for _, s := range []span{{superblockSize, btrfsSuperblock}, {btrfsSuperblock + superblockSize, n}} {
		others = appendClipped(others, s, n)
	}
	return superblocks, others
}

// appendClipped appends the part of s within the first n bytes, unless it is empty.
func appendClipped(list []span, s span, n int) []span {
	if s.lo >= min(s.hi, n) {
		return list
	}
	return append(list, span{s.lo, min(s.hi, n)})
}

// writeParts writes parts of the head p in order, and flushes after each. Without these flushes a power
// cut could lose one of two superblocks and leave the other.
func (j *job) writeParts(p []byte, parts []span) error {
	for _, s := range parts {
		if err := j.writeAt(p[s.lo:s.hi], int64(s.lo)); err != nil {
			return err
		}
		if err := j.syncTarget(); err != nil {
			return err
		}
	}
	return nil
}

// commitHead completes the image. It flushes everything but the head, reads it back if Verify is set,
// compares the sum of the image if there is one, and then writes the head.
func (j *job) commitHead(ctx context.Context, head *segment) error {
	if err := j.beginChange(); err != nil {
		return err
	}
	if err := j.syncTarget(); err != nil {
		return err
	}
	if err := j.verifyBody(ctx, head); err != nil {
		return err
	}
	if err := head.writeWhole(); err != nil {
		return err
	}
	if err := j.readBack(ctx, head.lo, head.hi); err != nil {
		return errors.Join(err, j.invalidateHead())
	}
	head.countDone()
	return nil
}

// verifyBody reads the chunks behind the head back and compares the sum of the image, as far as the options ask for it.
// The right sum needs no second read: all bytes of the medium are right. With another sum, the chunks tell whether the
// medium is the reason.
func (j *job) verifyBody(ctx context.Context, head *segment) error {
	var wrong error
	if j.options.ImageSum != nil {
		wrong = j.checkImageSum(ctx, head)
		if _, isSum := errors.AsType[*ImageSumError](wrong); !isSum {
			return wrong
		}
	}
	return cmp.Or(j.readBack(ctx, head.hi, j.plan.Index.Len()), wrong)
}

// readBack compares the chunks [lo, hi) with the medium, as far as Verify selects them.
func (j *job) readBack(ctx context.Context, lo, hi int) error {
	if j.options.Verify == Nothing {
		return ctx.Err()
	}
	o := newOrder(j.plan, lo, hi, j.order.segment, -1)
	return cmp.Or(j.forEachSegment(ctx, &o, func(_ context.Context, s *segment) error { return s.readBack() }), ctx.Err())
}

// flushSome flushes the target once flushEvery bytes are written. A power cut then costs little, and
// the last flush is short.
func (j *job) flushSome() error {
	if j.unflushed.Load() < flushEvery || !j.flushMu.TryLock() {
		return nil
	}
	defer j.flushMu.Unlock()
	j.unflushed.Store(0)
	return j.syncTarget()
}

func (j *job) writeAt(p []byte, off int64) error {
	j.counters.written.Add(int64(len(p)))
	if _, err := j.target.WriteAt(p, off); err != nil {
		return fmt.Errorf("writing %d bytes at %d of the target: %w", len(p), off, err)
	}
	j.unflushed.Add(int64(len(p)))
	if pacer, ok := j.target.(Pacer); ok {
		if err := pacer.StartWriteback(off, int64(len(p))); err != nil {
			return fmt.Errorf("writing %d bytes at %d of the target: %w", len(p), off, err)
		}
	}
	return nil
}

func (j *job) syncTarget() error {
	if err := j.target.Sync(); err != nil {
		return fmt.Errorf("flushing the target: %w", err)
	}
	return nil
}
