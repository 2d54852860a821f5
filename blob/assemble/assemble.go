// Package assemble puts an image onto a target: what is in place stays, what a seed has is read there,
// the rest is fetched, and every byte is hashed before it is written. It opens no files, and knows nothing
// of how stores work or where seeds come from; a program brings its own target, progress and store.
package assemble

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"cairn/blob"
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

// Options are limits and what to tell. The zero value is good for a device.
type Options struct {
	// New says that the target is a new file that nobody uses yet: it reads as zeros, nothing in it is
	// worth keeping, and it needs no guard against being taken for whole before it is.
	New bool
	// Segments is how many runs of the image are in work at once; each takes 8 MiB, more when chunks are
	// larger. 0 means two a processor, from 4 to 16.
	Segments int
	// Fetches is how many chunks are asked of the store at once. 0 means 32.
	Fetches int
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

// segmentSize is how many bytes of the image are put together at once, unless a chunk is larger.
const segmentSize = 4 << 20

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
	fetches chan struct{} // a token for each request under way
	heads   int           // number of chunks that overlap the head

	mu      sync.Mutex // guards what follows
	next    int        // the first chunk that no segment has taken
	repeats []int      // chunks to be copied from elsewhere on the target

	guard   sync.Once // makes the head invalid
	guarded error
	changed atomic.Bool // the target is not as it was

	telling sync.Mutex // held while Progress is called
	count   counters
}

// counters are Stats in the making.
type counters struct {
	inPlace, zero, copied, fetched, fetches, misses, written atomic.Int64
	seeds                                                    []atomic.Int64
}

func newJob(p *seed.Plan, from store.Getter, t Target, o Options) *job {
	if o.Segments <= 0 {
		o.Segments = min(max(4, 2*runtime.GOMAXPROCS(0)), 16)
	}
	if o.Fetches <= 0 {
		o.Fetches = 32
	}
	j := &job{plan: p, from: from, target: t, options: o, fetches: make(chan struct{}, o.Fetches)}
	j.heads = headChunks(p.Index)
	j.next = j.heads
	j.count.seeds = make([]atomic.Int64, len(p.Seeds))
	return j
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
		Size: j.plan.Index.Size(), InPlace: c.inPlace.Load(), Zero: c.zero.Load(), Copied: c.copied.Load(),
		Fetched: c.fetched.Load(), Fetches: c.fetches.Load(), SeedMiss: c.misses.Load(), Written: c.written.Load(),
		Seeds: make([]int64, len(c.seeds)),
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
	if err := j.body(ctx); err != nil {
		return err
	}
	if err := j.copyRepeats(ctx, head); err != nil {
		return err
	}
	if !j.changed.Load() && head.inPlace() {
		head.done()
		return nil
	}
	return j.commit(head)
}

// body does all segments behind the head.
func (j *job) body(ctx context.Context) error {
	return j.each(ctx, func(ctx context.Context, s *segment) error {
		if err := s.gather(ctx); err != nil {
			return err
		}
		return s.write()
	})
}

// each does the segments from next on, several at once.
func (j *job) each(ctx context.Context, do func(context.Context, *segment) error) error {
	group, ctx := errgroup.WithContext(ctx)
	for range j.options.Segments {
		group.Go(func() error {
			s := j.newSegment()
			for j.take(s) {
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
func (j *job) take(s *segment) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	lo := j.next
	if lo == j.plan.Index.Len() {
		return false
	}
	j.next = j.plan.Index.Span(lo, segmentSize)
	s.set(lo, j.next)
	return true
}

// copyRepeats writes the chunks that come earlier in the image, where they are by now. Of the head they
// are in memory only.
func (j *job) copyRepeats(ctx context.Context, head *segment) error {
	s := j.newSegment()
	for _, i := range j.repeats {
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
		if j.options.New || j.heads == 0 {
			return
		}
		n := min(headSize, j.plan.Index.Size())
		if err := j.writeAt(make([]byte, n), 0); err != nil {
			j.guarded = fmt.Errorf("making the old head invalid: %w", err)
			return
		}
		j.guarded = j.sync()
	})
	return j.guarded
}

// commit makes the target the whole image: all but the head is on the medium before the head is written.
func (j *job) commit(head *segment) error {
	if err := j.change(); err != nil {
		return err
	}
	if err := j.sync(); err != nil {
		return err
	}
	if err := head.writeWhole(); err != nil {
		return err
	}
	if err := j.sync(); err != nil {
		return err
	}
	head.done()
	return nil
}

func (j *job) writeAt(p []byte, off int64) error {
	j.count.written.Add(int64(len(p)))
	if _, err := j.target.WriteAt(p, off); err != nil {
		return fmt.Errorf("writing %d bytes at %d of the target: %w", len(p), off, err)
	}
	return nil
}

func (j *job) sync() error {
	if err := j.target.Sync(); err != nil {
		return fmt.Errorf("flushing the target: %w", err)
	}
	return nil
}
