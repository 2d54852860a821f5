// Package assemble puts an image onto a target: what is in place stays, what a seed has is read there,
// the rest is fetched, and every byte is hashed before it is written. It opens no files, and knows nothing
// of how stores work or where seeds come from; a program brings its own target, progress and store.
package assemble

import (
	"cmp"
	"context"
	"errors"
	"fmt"
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

// Target is what an image is assembled onto: a device, a partition of a disk image, a new file. It has
// room for the image. Its methods may be called at once for ranges that do not overlap.
type Target interface {
	io.ReaderAt
	io.WriterAt
	// Zero makes n bytes from off on read as zero.
	Zero(off, n int64) error
	// Sync returns when all that was written is on the medium, and says if any of it is not.
	Sync() error
}

// Pacer is a Target that can be told to begin to bring what was written to the medium, without waiting.
type Pacer interface{ StartWriteback(off, n int64) error }

// Rereader is a Target that can be read past all caches.
type Rereader interface {
	// ReadBack reads bytes from the medium, as io.ReaderAt does. It is called after Sync, by several goroutines at once.
	ReadBack(p []byte, off int64) (int, error)
}

// Cloner is a new file that can share bytes with a seed instead of holding a copy.
type Cloner interface {
	// Clone makes the target's bytes from lo to hi those of the seed at the same distance from from as
	// they are from off, where lo and hi lie within the n bytes from off on; lo = hi says that it cannot.
	// What the seed's owner changes later does not show in them.
	Clone(from io.ReaderAt, at, off, n int64) (lo, hi int64)
}

// Extent says what is read back from the medium and compared before a run ends.
type Extent uint8

const (
	Nothing Extent = iota
	Changed        // the chunks that were written or zeroed
	All            // the whole image
)

// ErrMedium says that the target gives back other bytes than were written to it.
var ErrMedium = errors.New("the medium does not hold what was written")

// Options are limits and what to tell. The zero value is good for a device.
type Options struct {
	// New says that the target is a new file that nobody uses yet: it reads as zeros, nothing in it is
	// worth keeping, and it needs no guard against being taken for whole before it is.
	New bool
	// Segments is how many runs of the image are in work at once, if Memory allows. 0 means 4, or 6
	// for a new file; when the store is far four times as many, of a quarter of the size.
	Segments int
	// Far says that the store answers late. More segments are in work then, and one goroutine begins with the chunks
	// that need no store.
	Far bool
	// Memory limits the buffers, in bytes; chunks larger than a sixteenth of it still get theirs. 0 means
	// 32 MiB.
	Memory int64
	// Own is the number of the seed that is the target's own old content, plus one; 0 means none is. Its
	// chunks serve until they are overwritten, and the image is written in the order that spares most.
	Own int
	// Verify says what to read back in the end.
	Verify Extent
	// Inspect is called with the image's first chunk, proven, before the target is changed; not with one of zeros.
	// An error ends the run. May be nil.
	Inspect func(first []byte) error
	// Changing is called once, before the target is changed for the first time. An error ends the run. May
	// be nil.
	Changing func() error
	// Stream has Preview tell what Stream would do.
	Stream bool
	// Progress is called now and then, never twice at once. May be nil.
	Progress func(Stats)
}

// Stats are the image's bytes by where they came from, and what else counts. The sources sum up to Done.
type Stats struct {
	Size     int64   `json:"size"`           // of the image, bytes
	Done     int64   `json:"done"`           // image bytes known to be right on the target
	InPlace  int64   `json:"in_place_bytes"` // of them, not written, as the target held them
	Zero     int64   `json:"zero_bytes"`     // zeroed on the target, without data
	Seeds    []int64 `json:"seed_bytes"`     // read from each seed
	Copied   int64   `json:"copied_bytes"`   // copied from elsewhere in the image
	Fetched  int64   `json:"fetched_bytes"`  // got from the store; plain size
	Fetches  int64   `json:"fetched_chunks"`
	SeedMiss int64   `json:"seed_misses"`   // chunks that a seed did not hold though its index says so
	Written  int64   `json:"written_bytes"` // data written to the target
}

// headSize is how much of an image file systems and boot loaders look at to recognise it: the superblocks
// of squashfs, ext4, erofs, xfs and btrfs lie in the first 128 KiB.
const headSize = 128 << 10

// The marks are the blocks of the head that are made invalid first and written last: none of these file systems is
// mounted without its own. A block is what today's media write whole or not at all when the power fails.
const (
	markSize  = 4 << 10
	btrfsMark = 64 << 10 // where btrfs has its superblock; all others have it in the first block
)

// maxSegment is how many bytes of the image are put together at once, unless memory is short or a chunk is
// larger; flushEvery how many written bytes a power cut may cost.
const (
	maxSegment = 4 << 20
	flushEvery = 32 << 20
)

// Run puts the plan's image onto t. The head, which is every chunk that overlaps the first 128 KiB, is
// made invalid before anything else changes, and written when all the rest is on the medium; so a target
// that is not whole is never taken for one. A target that holds the image already is not written. When
// Run returns nil, the image is on the medium; after an error, running it again goes on with what is there.
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
	changes *bitset.Set // the chunks that were written or zeroed

	mu      sync.Mutex // guards what follows
	order   order      // of the segments
	repeats []int      // chunks to be copied from elsewhere on the target
	idle    []*segment // segments that are done; their buffers are used again

	repeated *repeats // of a stream; nil when the target can be read

	flushing  sync.Mutex // held while the target is flushed on the way
	unflushed atomic.Int64

	guard   sync.Once // makes the head invalid
	guarded error
	changed atomic.Bool // the target is not as it was

	telling sync.Mutex // held while Progress is called
	count   counters
	sources []seed.Step // where each chunk comes from; nil in a run
}

// counters are Stats in the making.
type counters struct {
	kinds                    [seed.InPlace + 1]atomic.Int64 // bytes
	seeds                    []atomic.Int64                 // bytes
	fetches, misses, written atomic.Int64
}

func (c *counters) add(from seed.Step, size int64) {
	c.kinds[from.Kind].Add(size)
	switch from.Kind {
	case seed.Local:
		c.seeds[from.Seed].Add(size)
	case seed.Fetch:
		c.fetches.Add(1)
	}
}

func newJob(p *seed.Plan, from store.Getter, t Target, o Options) *job {
	segment, repeats := o.settle()
	j := &job{plan: p, from: from, target: t, options: o}
	j.heads = headChunks(p.Index)
	j.order = newOrder(p, j.heads, p.Index.Len(), segment, o.Own-1)
	if o.Far && !o.Stream && !j.order.keep {
		j.order.setLocalAside()
	}
	j.changes = bitset.New(p.Index.Len())
	j.count.seeds = make([]atomic.Int64, len(p.Seeds))
	if o.Stream {
		j.repeated = planRepeats(p, 0, p.Index.Len(), repeats)
	}
	return j
}

// settle fills in the defaults, and returns how many bytes a segment has, and how many a stream may keep of chunks that
// repeat.
func (o *Options) settle() (segment, repeats int64) {
	room := cmp.Or(max(o.Memory, 0), 32<<20)
	if o.Stream {
		repeats = room / 4
		room -= repeats
	}
	segment = min(maxSegment, max(room/16, 64<<10))
	buffers := int64(2)
	if o.New {
		buffers = 1 // what the target held is not read
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

// headChunks is how many chunks overlap the first headSize bytes.
func headChunks(x *blob.Index) int {
	if x.Size() <= headSize {
		return x.Len()
	}
	return x.Find(headSize-1) + 1
}

func (j *job) stats() Stats {
	c := &j.count
	s := Stats{
		Size: j.plan.Index.Size(), InPlace: c.kinds[seed.InPlace].Load(), Zero: c.kinds[seed.Zero].Load(),
		Copied: c.kinds[seed.Copy].Load(), Fetched: c.kinds[seed.Fetch].Load(), Fetches: c.fetches.Load(),
		SeedMiss: c.misses.Load(), Written: c.written.Load(), Seeds: make([]int64, len(c.seeds)),
	}
	s.Done = s.InPlace + s.Zero + s.Copied + s.Fetched
	for i := range c.seeds {
		s.Seeds[i] = c.seeds[i].Load()
		s.Done += s.Seeds[i]
	}
	return s
}

func (j *job) tell() {
	if j.options.Progress == nil {
		return
	}
	j.telling.Lock()
	defer j.telling.Unlock()
	j.options.Progress(j.stats())
}

// run gathers the head and keeps it, does all the rest, and then commits the head.
func (j *job) run(ctx context.Context) error {
	head := j.newSegment()
	head.set(0, j.heads)
	if err := head.gather(ctx); err != nil {
		return err
	}
	if err := j.inspect(head); err != nil {
		return err
	}
	if err := j.body(ctx); err != nil {
		return err
	}
	if err := j.copyRepeats(ctx, head); err != nil {
		return err
	}
	if j.changed.Load() || !head.inPlace() {
		return j.commit(ctx, head)
	}
	if err := j.sync(); err != nil { // who wrote it may have been stopped before it was flushed
		return err
	}
	head.done()
	return j.readBack(ctx, 0, j.plan.Index.Len())
}

func (j *job) inspect(head *segment) error {
	if j.options.Inspect == nil || head.hi == 0 || *head.state(0) == zero {
		return nil
	}
	return j.options.Inspect(head.bytes(0))
}

// body does all segments behind the head.
func (j *job) body(ctx context.Context) error {
	return j.each(ctx, &j.order, func(ctx context.Context, s *segment) error {
		if err := s.gather(ctx); err != nil {
			if s.turn != nil { // other segments still read what this one would overwrite
				return err
			}
			return errors.Join(err, s.write()) // what was fetched is not fetched again
		}
		if err := s.write(); err != nil {
			return err
		}
		return j.flushSome()
	})
}

// each calls do for all segments of an order, several at once.
func (j *job) each(ctx context.Context, o *order, do func(context.Context, *segment) error) error {
	group, ctx := errgroup.WithContext(ctx)
	for n := range j.options.Segments {
		group.Go(func() error {
			s := j.newSegment()
			defer j.reuse(s)
			for ctx.Err() == nil && j.take(o, s, n == 0) {
				if err := do(ctx, s); err != nil {
					return err
				}
				s.done()
			}
			return ctx.Err()
		})
	}
	return group.Wait()
}

// take gives s the next chunks that make up a segment, or says that none are left.
func (j *job) take(o *order, s *segment, localFirst bool) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	lo, hi, turn := o.take(localFirst)
	if lo < hi {
		s.set(lo, hi)
		s.turn = turn
	}
	return lo < hi
}

// newSegment returns a segment. It takes an idle one first, so that reading back at the end of a job allocates no
// second set of buffers.
func (j *job) newSegment() *segment {
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

// reuse makes s idle, for the next newSegment.
func (j *job) reuse(s *segment) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.idle = append(j.idle, s)
}

// addRepeat adds chunk i to the chunks that copyRepeats copies.
func (j *job) addRepeat(i int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.repeats = append(j.repeats, i)
}

// copyRepeats writes the chunks that come earlier in the image, where they are by now. Of the head they
// are in memory only.
func (j *job) copyRepeats(ctx context.Context, head *segment) error {
	s := j.newSegment()
	defer j.reuse(s)
	for _, i := range j.repeats {
		if err := ctx.Err(); err != nil {
			return err
		}
		s.set(i, i+1)
		if err := s.copyFrom(ctx, j.plan.First(i), head); err != nil {
			return err
		}
		if err := s.write(); err != nil {
			return err
		}
		s.done()
	}
	return ctx.Err()
}

// change is called before the target is changed. It first makes the head invalid, for good, so that no
// power cut leaves a mix of images that looks like one.
func (j *job) change() error {
	j.guard.Do(func() {
		j.changed.Store(true)
		if j.options.Changing != nil {
			if j.guarded = j.options.Changing(); j.guarded != nil {
				return
			}
		}
		if j.options.New || j.heads == 0 {
			return
		}
		j.guarded = j.breakHead()
	})
	return j.guarded
}

// breakHead makes the head invalid, durably; its marks first, so that no half of the old head is taken for all of
// it.
func (j *job) breakHead() error {
	zeros := make([]byte, min(headSize, j.plan.Index.Size()))
	marks, others := parts(len(zeros))
	if err := j.writeParts(zeros, append(slices.Clone(marks), others...)); err != nil {
		return fmt.Errorf("making the old head invalid: %w", err)
	}
	return nil
}

// span is a run of bytes of the head.
type span struct{ lo, hi int }

// parts divides n bytes of head into the marks and the rest. None of them is empty.
func parts(n int) (marks, others []span) {
	for _, s := range []span{{0, markSize}, {btrfsMark, btrfsMark + markSize}} {
		marks = appendPart(marks, s, n)
	}
	for _, s := range []span{{markSize, btrfsMark}, {btrfsMark + markSize, n}} {
		others = appendPart(others, s, n)
	}
	return marks, others
}

// appendPart appends what of s lies within n bytes.
func appendPart(list []span, s span, n int) []span {
	if s.lo >= min(s.hi, n) {
		return list
	}
	return append(list, span{s.lo, min(s.hi, n)})
}

// writeParts writes parts of the head p, each of which is on the medium before the next one is begun: else a power
// cut could lose one of two marks, and leave the other.
func (j *job) writeParts(p []byte, parts []span) error {
	for _, s := range parts {
		if err := j.writeAt(p[s.lo:s.hi], int64(s.lo)); err != nil {
			return err
		}
		if err := j.sync(); err != nil {
			return err
		}
	}
	return nil
}

// commit makes the target the whole image: all but the head is on the medium, and read back if that is
// wanted, before the head is written.
func (j *job) commit(ctx context.Context, head *segment) error {
	if err := j.change(); err != nil {
		return err
	}
	if err := j.sync(); err != nil {
		return err
	}
	if err := j.readBack(ctx, head.hi, j.plan.Index.Len()); err != nil {
		return err
	}
	if err := head.writeWhole(); err != nil {
		return err
	}
	if err := j.readBack(ctx, head.lo, head.hi); err != nil {
		return errors.Join(err, j.breakHead())
	}
	head.done()
	return nil
}

// readBack compares what the medium holds of the chunks from lo to hi, as far as that is wanted.
func (j *job) readBack(ctx context.Context, lo, hi int) error {
	if j.options.Verify == Nothing {
		return ctx.Err()
	}
	o := newOrder(j.plan, lo, hi, j.order.segment, -1)
	return cmp.Or(j.each(ctx, &o, func(_ context.Context, s *segment) error { return s.readBack() }), ctx.Err())
}

// flushSome brings what was written to the medium now and then, so that a power cut costs little and the
// last flush is short.
func (j *job) flushSome() error {
	if j.unflushed.Load() < flushEvery || !j.flushing.TryLock() {
		return nil
	}
	defer j.flushing.Unlock()
	j.unflushed.Store(0)
	return j.sync()
}

func (j *job) writeAt(p []byte, off int64) error {
	j.count.written.Add(int64(len(p)))
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

func (j *job) sync() error {
	if err := j.target.Sync(); err != nil {
		return fmt.Errorf("flushing the target: %w", err)
	}
	return nil
}
