// Package verify proves that bytes are the image of an index, and that a store holds all chunks of an
// index. It writes nothing.
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

// Options are the settings of Image, Stream and Store.
type Options struct {
	Workers  int          // number of concurrent workers, at least 1
	Progress func(Report) // called after each run of chunks, never concurrently; may be nil
	// Inspect is called by Store with the image's first chunk, if it is right and not zeros. The bytes
	// are valid only during the call. May be nil.
	Inspect func(first []byte)
}

// Range is a range of image bytes.
type Range struct {
	Offset int64 `json:"offset"`
	Size   int64 `json:"size"`
}

// Report is the result of a verification.
type Report struct {
	Size     int64   `json:"size"`      // of the image, bytes
	Done     int64   `json:"done"`      // verified bytes
	Bad      int     `json:"bad"`       // wrong chunks
	BadBytes int64   `json:"bad_bytes"` // bytes of the wrong chunks
	First    []Range `json:"first"`     // the first wrong ranges by offset, with adjacent chunks joined; only at the end
	// Unfinished reports that the image is wrong and begins with zeros, as an interrupted assemble
	// leaves it. Only Opened.Verify sets it.
	Unfinished bool    `json:"unfinished,omitempty"`
	Causes     []error `json:"-"` // Store: the errors of the first wrong chunks found
}

// maxNamed limits the ranges and the causes in a report.
const maxNamed = 10

// readSize is the size of a read in bytes, unless a single chunk is larger.
const readSize = 4 << 20

// Sparse is an image with known holes; see chunker.Sparse.
type Sparse interface {
	NextData(off int64) (start, end int64, err error)
}

// Image compares the content of r with the index's digests. Wrong chunks are in the report. A failed
// read or an image that is too short is an error. Zeros are compared, which is many times cheaper than
// hashing them. If r is Sparse, its holes are not read.
func Image(ctx context.Context, x *blob.Index, r io.ReaderAt, o Options) (Report, error) {
	j := newJob(x, o)
	err := j.runWorkers(ctx, func() worker {
		c := &checker{job: j, image: r}
		c.sparse, _ = r.(Sparse)
		return c
	})
	return j.report, err
}

// Store fetches each distinct chunk of the index from a store. Absent and wrong chunks are in the
// report; any other failure of the store is an error.
func Store(ctx context.Context, x *blob.Index, from store.Getter, o Options) (Report, error) {
	j, table := newJob(x, o), blob.NewTable(x)
	err := j.runWorkers(ctx, func() worker { return &storeChecker{job: j, from: from, table: table} })
	return j.report, err
}

// Zeros reports whether all bytes of r in [from, to) are zeros. If r is Sparse, its holes are not read.
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

// skipHole returns the offset of the first data at or behind off, or off if r does not know its holes.
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

	mu        sync.Mutex // guards the fields below
	next      int        // the first unassigned chunk
	report    Report
	badChunks []uint32 // numbers of the wrong chunks
}

func newJob(x *blob.Index, o Options) *job {
	return &job{index: x, options: o, report: Report{Size: x.Size()}}
}

// worker checks runs of chunks. The workers of a job run concurrently.
type worker interface {
	// takeRun returns the next run of chunks [lo, hi); lo = hi means that none is left.
	takeRun() (lo, hi int, err error)
	checkRun(ctx context.Context, lo, hi int) error
}

// runWorkers starts the workers, which take runs of chunks and check them until none is left.
func (j *job) runWorkers(ctx context.Context, newWorker func() worker) error {
	group, groupCtx := errgroup.WithContext(ctx)
	for range max(j.options.Workers, 1) {
		group.Go(func() error {
			w := newWorker()
			for groupCtx.Err() == nil {
				lo, hi, err := w.takeRun()
				if lo == hi || err != nil {
					return err
				}
				if err := w.checkRun(groupCtx, lo, hi); err != nil {
					return err
				}
				j.countDone(lo, hi)
			}
			return groupCtx.Err()
		})
	}
	err := group.Wait()
	j.report.First = j.badRanges()
	if err != nil {
		return err
	}
	return ctx.Err()
}

// takeRun returns the next run of chunks [lo, hi), with at most size bytes or one chunk.
func (j *job) takeRun(size int64) (lo, hi int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if lo = j.next; lo < j.index.Len() {
		j.next = j.index.Span(lo, size)
	}
	return lo, j.next
}

// countDone counts the chunks [lo, hi) as verified, and reports progress.
func (j *job) countDone(lo, hi int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.report.Done += j.index.At(hi-1).End() - j.index.At(lo).Offset
	if j.options.Progress != nil {
		j.options.Progress(j.report)
	}
}

// recordBad records that chunk i is wrong.
func (j *job) recordBad(i int, cause error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.report.Bad++
	j.report.BadBytes += j.index.At(i).Size
	j.badChunks = append(j.badChunks, uint32(i))
	if cause != nil && len(j.report.Causes) < maxNamed {
		j.report.Causes = append(j.report.Causes, cause)
	}
}

// badRanges returns the first few ranges of wrong chunks. It runs at the end, because workers find
// chunks in any order and a late one may join two ranges.
func (j *job) badRanges() []Range {
	slices.Sort(j.badChunks)
	var ranges []Range
	for _, i := range j.badChunks {
		c, n := j.index.At(int(i)), len(ranges)
		switch {
		case n > 0 && ranges[n-1].Offset+ranges[n-1].Size == c.Offset:
			ranges[n-1].Size += c.Size
		case n == maxNamed:
			return ranges
		default:
			ranges = append(ranges, Range{c.Offset, c.Size})
		}
	}
	return ranges
}

// checker is a worker of Image.
type checker struct {
	job    *job
	image  io.ReaderAt
	sparse Sparse // nil if holes are unknown
	buf    []byte
	// The chunks to hash, their numbers, and their digests.
	data    [][]byte
	numbers []int
	digests []blob.Digest
}

func (c *checker) takeRun() (lo, hi int, err error) {
	lo, hi = c.job.takeRun(readSize)
	return lo, hi, nil
}

func (c *checker) checkRun(_ context.Context, lo, hi int) error {
	if c.inHole(lo, hi) {
		return nil
	}
	p, err := c.readRun(lo, hi)
	if err == nil {
		c.verifyRun(lo, hi, p)
	}
	return err
}

// inHole reports whether the chunks [lo, hi) are zero and lie in a hole of the image.
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

func (c *checker) readRun(lo, hi int) ([]byte, error) {
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

// verifyRun compares the chunks [lo, hi), whose bytes are p, with the index.
func (c *checker) verifyRun(lo, hi int, p []byte) {
	x, start := c.job.index, c.job.index.At(lo).Offset
	c.data, c.numbers = c.data[:0], c.numbers[:0]
	for i, chunk := range x.Range(lo, hi) {
		data := p[chunk.Offset-start : chunk.End()-start]
		switch {
		case !x.IsZero(i):
			c.data, c.numbers = append(c.data, data), append(c.numbers, i)
		case !blob.AllZero(data):
			c.job.recordBad(i, nil)
		}
	}
	if len(c.digests) < len(c.data) {
		c.digests = make([]blob.Digest, 2*len(c.data))
	}
	x.Algorithm().SumAll(c.digests, c.data)
	for n, i := range c.numbers {
		if c.digests[n] != x.At(i).Digest {
			c.job.recordBad(i, nil)
		}
	}
}

// storeChecker is a worker of Store.
type storeChecker struct {
	job   *job
	from  store.Getter
	table *blob.Table
	buf   []byte
}

// storeRun is the size of a run of chunks that are fetched together, in bytes, unless a single chunk is larger.
const storeRun = 1 << 20

func (g *storeChecker) takeRun() (lo, hi int, err error) {
	lo, hi = g.job.takeRun(storeRun)
	return lo, hi, nil
}

// checkRun fetches the chunks [lo, hi) except repeats.
func (g *storeChecker) checkRun(ctx context.Context, lo, hi int) error {
	x := g.job.index
	start, end := x.At(lo).Offset, x.At(hi-1).End()
	if int64(len(g.buf)) < end-start {
		g.buf = make([]byte, end-start)
	}
	var wants []store.Want
	var numbers []int
	for i, c := range x.Range(lo, hi) {
		if first := g.table.Find(c.Digest); first == i || x.At(first).Size != c.Size {
			wants = append(wants, store.Want{Digest: c.Digest, Dst: g.buf[c.Offset-start : c.End()-start]})
			numbers = append(numbers, i)
		}
	}
	outcomes := make([]error, len(wants))
	g.from.Get(ctx, wants, func(n int, err error) { outcomes[n] = err })
	for n, i := range numbers {
		if err := g.noteOutcome(i, wants[n].Dst, outcomes[n]); err != nil {
			return err
		}
	}
	return nil
}

// noteOutcome records the outcome of the request for chunk i.
func (g *storeChecker) noteOutcome(i int, data []byte, err error) error {
	var corrupt *store.CorruptError
	switch {
	case errors.Is(err, store.ErrNotFound) || errors.As(err, &corrupt):
		g.job.recordBad(i, err)
	case err != nil:
		return fmt.Errorf("fetching the chunk at byte %d of the image: %w", g.job.index.At(i).Offset, err)
	case i == 0 && g.job.options.Inspect != nil && !g.job.index.IsZero(0):
		g.job.options.Inspect(data)
	}
	return nil
}
