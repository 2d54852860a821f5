package keep

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"sync"
	"sync/atomic"

	"cairn/blob"
	"cairn/store"
)

// CopyOptions say what to copy, and how.
type CopyOptions struct {
	Algorithm *blob.Algorithm // of the digests; nil finds out, and takes both in one store
	Indexes   []*blob.Index   // copy their chunks; without any, all that the store holds
	Else      []store.Reader  // stores that stand in for the one copied from: chunks that it lacks are read there
	Workers   int             // how many chunks are asked for, read and hashed at once; at least one is
	Writer    store.WriterOptions
	Found     func(Finding)      // called for each chunk that could not be copied, in order; may be nil
	Show      func(r CopyReport) // called now and then, never twice at once; may be nil
}

// CopyReport is what was done.
type CopyReport struct {
	Wanted  int64  `json:"wanted"` // chunks
	Held    int64  `json:"held"`   // by the other store already
	Copied  Amount `json:"copied"`
	Done    int64  `json:"-"` // bytes, where indexes tell the sizes, that are there or cannot be
	Damaged int64  `json:"damaged"`
	Empty   int64  `json:"empty"`
	Missing int64  `json:"missing"`
	Unknown int64  `json:"unknown"`
	// Whole says which of the indexes have all their chunks in the other store now.
	Whole []bool `json:"-"`
}

// Bad is how many chunks could not be copied.
func (r CopyReport) Bad() int64 { return r.Damaged + r.Empty + r.Missing + r.Unknown }

// Copy brings chunks from one store to another, which are proven before they are written; a chunk that is one
// zstd frame stays as it is. The other store is listed, or asked, for what it holds already. What was copied is
// durable from time to time, so that a Copy after an interrupted one does the rest. Chunks that are damaged or
// missing are in the report; any other failure of a store is an error. Memory does not grow with the stores; for
// indexes it is about 60 bytes for each different chunk.
func Copy(ctx context.Context, from store.Reader, to store.Bucket, o CopyOptions) (CopyReport, error) {
	w, err := store.NewWriter(to, o.Writer)
	if err != nil {
		return CopyReport{}, err
	}
	defer w.Close()
	c := &copier{source: newSource(from, o.Algorithm), standIns: newSources(o.Else, o.Algorithm), to: to, writer: w, options: o}
	if err := c.run(ctx, from); err != nil {
		return c.report, err
	}
	for _, x := range o.Indexes {
		c.report.Whole = append(c.report.Whole, c.whole(x))
	}
	return c.report, ctx.Err()
}

type copier struct {
	source
	standIns []source
	down     atomic.Bool // the store cannot be reached: only those that stand in for it are asked
	to       store.Bucket
	writer   *store.Writer
	options  CopyOptions

	mu       sync.Mutex // guards what follows
	report   CopyReport
	findings []numbered // of the stretch
	failed   map[blob.Digest]struct{}
}

func (c *copier) run(ctx context.Context, from store.Reader) error {
	if len(c.options.Indexes) > 0 {
		c.failed = map[blob.Digest]struct{}{}
		return c.chunks(ctx, wanted(c.options.Indexes), "")
	}
	l, err := listerOf(from)
	if err != nil {
		return err
	}
	for s, err := range shards(ctx, l) {
		if err != nil {
			return fmt.Errorf("listing %v: %w", from, err)
		}
		if err := c.chunks(ctx, preferred(s.objects), s.prefix); err != nil {
			return err
		}
	}
	return nil
}

// preferred are the chunks of objects, each in the form that readers prefer.
func preferred(objects []object) series {
	return listed(slices.CompactFunc(objects, func(a, b object) bool { return a.digest == b.digest }))
}

// chunks copies those whose digests have a prefix.
func (c *copier) chunks(ctx context.Context, s series, prefix string) error {
	if s.n == 0 {
		return nil
	}
	held := store.TakeInventory(ctx, c.to, store.InventoryOptions{Chunks: int64(s.n), Prefix: prefix})
	defer held.Close()
	for lo := 0; lo < s.n; lo += stretch {
		if err := c.stretch(ctx, s.part(lo, min(lo+stretch, s.n)), held); err != nil {
			return err
		}
	}
	return nil
}

func (c *copier) stretch(ctx context.Context, chunks []chunk, held store.Haser) error {
	before := c.report
	err := work(ctx, len(chunks), c.options.Workers, func() func(context.Context, int, int) error {
		w := &copyWorker{copier: c, p: newProver(c.source), held: held}
		return func(ctx context.Context, lo, hi int) error { return w.copy(ctx, chunks[lo:hi], lo) }
	})
	if err == nil {
		err = c.writer.Commit(ctx)
	}
	if err != nil {
		c.report, c.findings = before, nil
		return err
	}
	sort.Slice(c.findings, func(i, j int) bool { return c.findings[i].at < c.findings[j].at })
	for _, f := range c.findings {
		if c.options.Found != nil {
			c.options.Found(f.Finding)
		}
	}
	c.findings = c.findings[:0]
	return nil
}

func (c *copier) whole(x *blob.Index) bool {
	for _, chunk := range x.All() {
		if _, bad := c.failed[chunk.Digest]; bad {
			return false
		}
	}
	return true
}

// copyWorker is one of those who copy.
type copyWorker struct {
	*copier
	p     *prover
	held  store.Haser
	lacks []chunk
	at    []int
}

func (w *copyWorker) copy(ctx context.Context, chunks []chunk, at int) error {
	w.lacks, w.at = w.lacks[:0], w.at[:0]
	for i, c := range chunks {
		has, err := w.held.Has(ctx, c.digest)
		if err != nil {
			return fmt.Errorf("asking %v for chunk %v: %w", w.to, c.digest, err)
		}
		if has {
			w.count(c, func(r *CopyReport) { r.Held++ })
		} else {
			w.lacks, w.at = append(w.lacks, c), append(w.at, at+i)
		}
	}
	if len(w.lacks) == 0 {
		return nil
	}
	errs, err := w.load(ctx)
	if err != nil {
		return err
	}
	for i, c := range w.lacks {
		if err := w.put(ctx, c, w.at[i], errs[i], &w.p.raws[i]); err != nil {
			return err
		}
	}
	return nil
}

// load reads and proves the chunks that are lacking, and tells of each what is wrong with it.
func (w *copyWorker) load(ctx context.Context) (errs []error, err error) {
	if w.down.Load() {
		err = fmt.Errorf("reading %s: %w", w.name, store.ErrUnavailable)
	} else {
		errs, err = w.p.prove(ctx, w.lacks)
	}
	if err != nil && (len(w.standIns) == 0 || ctx.Err() != nil) {
		return nil, err
	}
	if err != nil {
		w.down.Store(true)
		errs = slices.Repeat([]error{err}, len(w.lacks))
	}
	for i, c := range w.lacks {
		if errs[i] == nil {
			continue
		}
		found, failed := loadAny(ctx, w.standIns, c, &w.p.raws[i])
		switch {
		case failed != nil:
			return nil, failed
		case found:
			errs[i] = nil
		case !known(errs[i]):
			return nil, errs[i]
		}
	}
	return errs, nil
}

// put writes a chunk, if it is what it should be.
func (w *copyWorker) put(ctx context.Context, c chunk, at int, err error, raw *store.Raw) error {
	if err != nil {
		w.fail(c, numbered{at, Finding{Kind: kindOf(err, -1, int64(len(raw.Stored))), Name: c.name(), Why: err.Error()}})
		return nil
	}
	stored, err := w.writer.PutRaw(ctx, c.digest, raw)
	if err != nil {
		return err
	}
	w.count(c, func(r *CopyReport) { r.Copied.count(stored) })
	return nil
}

func (w *copyWorker) fail(c chunk, f numbered) {
	w.count(c, func(r *CopyReport) {
		w.findings = append(w.findings, f)
		if w.failed != nil {
			w.failed[c.digest] = struct{}{}
		}
		switch f.Kind {
		case Missing:
			r.Missing++
		case Empty:
			r.Empty++
		case Unknown:
			r.Unknown++
		default:
			r.Damaged++
		}
	})
}

// count changes the report by one chunk, and shows it.
func (w *copyWorker) count(c chunk, change func(r *CopyReport)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.report.Wanted++
	w.report.Done += c.size
	change(&w.report)
	if w.options.Show != nil {
		w.options.Show(w.report)
	}
}

// DistinctBytes is what the different chunks of indexes have together.
func DistinctBytes(indexes []*blob.Index) (bytes int64) {
	t := newTable()
	for i, x := range indexes {
		t.add(x, int32(i))
	}
	for _, r := range t.rows {
		bytes += int64(r.size)
	}
	return bytes
}
