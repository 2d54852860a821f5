// Package verify proves what is claimed to be whole: that bytes are an index's image, and that a store
// holds every chunk of it. It writes nothing.
package verify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"cairn/blob"
	"cairn/store"
)

// Options are limits and what to tell.
type Options struct {
	Workers  int          // how many read and hash at once; at least one does
	Progress func(Report) // called now and then, never twice at once; may be nil
	// Inspect is called by Store with the image's first chunk, if it is right and not zeros. The bytes are its caller's. May
	// be nil.
	Inspect func(first []byte)
}

// Range is a run of image bytes.
type Range struct {
	Offset int64 `json:"offset"`
	Size   int64 `json:"size"`
}

// Report is what was found.
type Report struct {
	Size     int64   `json:"size"`      // of the image, bytes
	Done     int64   `json:"done"`      // of them looked at
	Bad      int     `json:"bad"`       // chunks that are not right
	BadBytes int64   `json:"bad_bytes"` // their size
	First    []Range `json:"first"`     // the first of them, by offset, neighbours together; only at the end
	// Unfinished says that the image is wrong and begins with zeros, as an interrupted assemble leaves it. Opened.Verify
	// finds it out.
	Unfinished bool    `json:"unfinished,omitempty"`
	Causes     []error `json:"-"` // store: what is wrong with those found first
}

// firsts is how many bad ranges and causes a report names.
const firsts = 10

// readSize is how many bytes are read at once, unless a chunk is larger.
const readSize = 4 << 20

// Sparse is an image that knows where it has holes; see chunker.Sparse.
type Sparse interface {
	NextData(off int64) (start, end int64, err error)
}

// Image compares what r holds with the index's digests. Other bytes are in the report; a read that fails,
// or an image that ends too early, is an error. Zeros are compared, which is many times cheaper than hashing
// them, and where r is Sparse its holes are not read.
func Image(ctx context.Context, x *blob.Index, r io.ReaderAt, o Options) (Report, error) {
	j := newJob(x, o)
	err := j.run(ctx, func() worker {
		c := &checker{job: j, image: r}
		c.sparse, _ = r.(Sparse)
		return c
	})
	return j.report, err
}

// Store gets every different chunk of the index from a store. Chunks that are absent or wrong are in the
// report; any other failure of the store is an error.
func Store(ctx context.Context, x *blob.Index, from store.Getter, o Options) (Report, error) {
	j, table := newJob(x, o), blob.NewTable(x)
	err := j.run(ctx, func() worker { return &getter{job: j, from: from, table: table} })
	return j.report, err
}

// Zeros reports whether the bytes of r from one offset to another are all zeros. Where r is Sparse its holes are not
// read.
func Zeros(ctx context.Context, r io.ReaderAt, from, to int64) (bool, error) {
	buf := make([]byte, min(max(to-from, 0), readSize))
	for from = skipHole(r, from); from < to; from = skipHole(r, from) {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		p := buf[:min(to-from, readSize)]
		if n, err := r.ReadAt(p, from); n < len(p) {
			return false, fmt.Errorf("reading at %d: %w", from+int64(n), err)
		}
		if !blob.AllZero(p) {
			return false, nil
		}
		from += int64(len(p))
	}
	return true, nil
}

// skipHole returns where data begins at or behind off, as far as r tells.
func skipHole(r io.ReaderAt, off int64) int64 {
	if sparse, ok := r.(Sparse); ok {
		if start, _, err := sparse.NextData(off); err == nil {
			return start
		}
	}
	return off
}

type job struct {
	index   *blob.Index
	options Options

	mu     sync.Mutex // guards what follows
	next   int        // the first chunk that is not taken
	report Report
	wrong  []uint32 // the numbers of the chunks that are not right
}

func newJob(x *blob.Index, o Options) *job {
	return &job{index: x, options: o, report: Report{Size: x.Size()}}
}

// worker checks runs of chunks. Several share a job.
type worker interface {
	// take takes the next run of chunks, from lo to hi. They are equal when none are left.
	take() (lo, hi int, err error)
	check(ctx context.Context, lo, hi int) error
}

// run lets workers take runs of chunks and check them, until none are left.
func (j *job) run(ctx context.Context, newWorker func() worker) error {
	group, groupCtx := errgroup.WithContext(ctx)
	for range max(j.options.Workers, 1) {
		group.Go(func() error {
			w := newWorker()
			for groupCtx.Err() == nil {
				lo, hi, err := w.take()
				if lo == hi || err != nil {
					return err
				}
				if err := w.check(groupCtx, lo, hi); err != nil {
					return err
				}
				j.done(lo, hi)
			}
			return groupCtx.Err()
		})
	}
	err := group.Wait()
	j.report.First = j.ranges()
	if err != nil {
		return err
	}
	return ctx.Err()
}

// takeRun takes the next run of chunks that has at most size bytes, or one chunk.
func (j *job) takeRun(size int64) (lo, hi int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if lo = j.next; lo < j.index.Len() {
		j.next = j.index.Span(lo, size)
	}
	return lo, j.next
}

// done counts the chunks from lo to hi as looked at.
func (j *job) done(lo, hi int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.report.Done += j.index.At(hi-1).End() - j.index.At(lo).Offset
	if j.options.Progress != nil {
		j.options.Progress(j.report)
	}
}

// bad notes that chunk i is not right.
func (j *job) bad(i int, cause error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.report.Bad++
	j.report.BadBytes += j.index.At(i).Size
	j.wrong = append(j.wrong, uint32(i))
	if cause != nil && len(j.report.Causes) < firsts {
		j.report.Causes = append(j.report.Causes, cause)
	}
}

// ranges are the first few runs of wrong chunks. They are made at the end, as workers find chunks in any
// order, and a gap that is filled late joins two ranges into one.
func (j *job) ranges() []Range {
	slices.Sort(j.wrong)
	var ranges []Range
	for _, i := range j.wrong {
		c, n := j.index.At(int(i)), len(ranges)
		switch {
		case n > 0 && ranges[n-1].Offset+ranges[n-1].Size == c.Offset:
			ranges[n-1].Size += c.Size
		case n == firsts:
			return ranges
		default:
			ranges = append(ranges, Range{c.Offset, c.Size})
		}
	}
	return ranges
}

// checker is one worker of Image.
type checker struct {
	job    *job
	image  io.ReaderAt
	sparse Sparse // nil when it does not know its holes
	buf    []byte
	// The chunks to hash, their numbers, and their digests.
	data  [][]byte
	which []int
	sums  []blob.Digest
}

func (c *checker) take() (lo, hi int, err error) {
	lo, hi = c.job.takeRun(readSize)
	return lo, hi, nil
}

func (c *checker) check(_ context.Context, lo, hi int) error {
	if c.inHole(lo, hi) {
		return nil
	}
	p, err := c.read(lo, hi)
	if err == nil {
		c.prove(lo, hi, p)
	}
	return err
}

// inHole reports whether the chunks from lo to hi are zero and the image has nothing but a hole there.
func (c *checker) inHole(lo, hi int) bool {
	if c.sparse == nil {
		return false
	}
	for i := lo; i < hi; i++ {
		if !c.job.index.IsZero(i) {
			return false
		}
	}
	start, _, err := c.sparse.NextData(c.job.index.At(lo).Offset)
	return err == nil && start >= c.job.index.At(hi-1).End()
}

func (c *checker) read(lo, hi int) ([]byte, error) {
	x := c.job.index
	start, end := x.At(lo).Offset, x.At(hi-1).End()
	if int64(cap(c.buf)) < end-start {
		c.buf = make([]byte, max(end-start, readSize))
	}
	p := c.buf[:end-start]
	if n, err := c.image.ReadAt(p, start); n < len(p) {
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("it ends at %d, the image has %d bytes", start+int64(n), x.Size())
		}
		return nil, fmt.Errorf("reading at %d: %w", start+int64(n), err)
	}
	return p, nil
}

// prove compares the chunks from lo to hi, whose bytes are p.
func (c *checker) prove(lo, hi int, p []byte) {
	x, start := c.job.index, c.job.index.At(lo).Offset
	c.data, c.which = c.data[:0], c.which[:0]
	for i, chunk := range x.Range(lo, hi) {
		data := p[chunk.Offset-start : chunk.End()-start]
		switch {
		case !x.IsZero(i):
			c.data, c.which = append(c.data, data), append(c.which, i)
		case !blob.AllZero(data):
			c.job.bad(i, nil)
		}
	}
	if len(c.sums) < len(c.data) {
		c.sums = make([]blob.Digest, 2*len(c.data))
	}
	x.Algorithm().SumAll(c.sums, c.data)
	for n, i := range c.which {
		if c.sums[n] != x.At(i).Digest {
			c.job.bad(i, nil)
		}
	}
}

// getter is one worker of Store.
type getter struct {
	job   *job
	from  store.Getter
	table *blob.Table
	buf   []byte
}

func (g *getter) take() (lo, hi int, err error) {
	lo, hi = g.job.takeRun(1)
	return lo, hi, nil
}

// check gets chunk lo, unless it is a repeat.
func (g *getter) check(ctx context.Context, lo, _ int) error {
	c := g.job.index.At(lo)
	if first := g.table.Find(c.Digest); first < lo && g.job.index.At(first).Size == c.Size {
		return nil
	}
	if int64(len(g.buf)) < c.Size {
		g.buf = make([]byte, c.Size)
	}
	err := store.GetOne(ctx, g.from, c.Digest, g.buf[:c.Size])
	var corrupt *store.CorruptError
	switch {
	case errors.Is(err, store.ErrNotFound) || errors.As(err, &corrupt):
		g.job.bad(lo, err)
	case err != nil:
		return fmt.Errorf("getting the image's bytes at %d: %w", c.Offset, err)
	case lo == 0 && g.job.options.Inspect != nil && !g.job.index.IsZero(0):
		g.job.options.Inspect(g.buf[:c.Size])
	}
	return nil
}
