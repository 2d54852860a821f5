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

// CopyOptions configure a Copy.
type CopyOptions struct {
	Algorithm *blob.Algorithm // of the digests; nil detects it, and accepts both in one store
	Indexes   []*blob.Index   // copy their chunks; without any, all chunks of the store
	Except    []*blob.Index   // their chunks are not copied; needs Indexes
	Else      []store.Reader  // fallback stores for chunks that the source lacks
	Workers   int             // chunks that are requested, read and hashed at once; at least one
	Writer    store.WriterOptions
	Found     func(Finding)      // called for each chunk that could not be copied, in order; may be nil
	Show      func(r CopyReport) // called after each chunk, never concurrently; may be nil
}

// CopyReport counts the chunks of a Copy.
type CopyReport struct {
	Wanted  int64  `json:"wanted"` // chunks processed
	Held    int64  `json:"held"`   // present in the destination before
	Copied  Amount `json:"copied"`
	Done    int64  `json:"-"` // image bytes of the processed chunks, where indexes give the sizes
	Damaged int64  `json:"damaged"`
	Empty   int64  `json:"empty"`
	Missing int64  `json:"missing"`
	Unknown int64  `json:"unknown"`
	// Whole holds for each index whether the destination now has all its chunks.
	Whole []bool `json:"-"`
}

// Bad returns how many chunks could not be copied.
func (r CopyReport) Bad() int64 { return r.Damaged + r.Empty + r.Missing + r.Unknown }

// Copy copies chunks from one store to another. It verifies each chunk before it writes it; a chunk
// that is one zstd frame stays as it is. Copy lists the destination, or sends requests, to find the
// chunks that it holds already.
//
// Copy commits regularly, so that a Copy after an interrupted one does the rest. Damaged and
// missing chunks are in the report; any other failure of a store is an error. Memory does not grow
// with the stores. Indexes take about 60 bytes for each distinct chunk.
func Copy(ctx context.Context, from store.Reader, to store.Bucket, o CopyOptions) (CopyReport, error) {
	w, err := store.NewWriter(to, o.Writer)
	if err != nil {
		return CopyReport{}, err
	}
	defer w.Close()
	c := &copier{source: newSource(from, o.Algorithm), fallbacks: newSources(o.Else, o.Algorithm), to: to, writer: w, options: o}
	if err := c.copyAll(ctx, from); err != nil {
		return c.report, err
	}
	for _, x := range o.Indexes {
		c.report.Whole = append(c.report.Whole, c.copiedAll(x))
	}
	return c.report, ctx.Err()
}

type copier struct {
	source
	fallbacks []source
	down      atomic.Bool // the source is unavailable: only the fallback stores are asked
	to        store.Bucket
	writer    *store.Writer
	options   CopyOptions

	mu       sync.Mutex // guards the fields below
	report   CopyReport
	findings []placedFinding // of the present batch
	failed   map[blob.Digest]struct{}
}

func (c *copier) copyAll(ctx context.Context, from store.Reader) error {
	if len(c.options.Indexes) > 0 {
		c.failed = map[blob.Digest]struct{}{}
		return c.copyChunks(ctx, wantedChunks(c.options.Indexes, c.options.Except), "")
	}
	l, err := listerOf(from)
	if err != nil {
		return err
	}
	for s, err := range listShards(ctx, l) {
		if err != nil {
			return fmt.Errorf("listing %v: %w", from, err)
		}
		// Of a chunk in both forms, the first is the one that readers prefer.
		distinct := slices.CompactFunc(s.objects, func(a, b object) bool { return a.digest == b.digest })
		if err := c.copyChunks(ctx, listedChunks(distinct), s.prefix); err != nil {
			return err
		}
	}
	return nil
}

// copyChunks copies the chunks of s, whose digests begin with prefix.
func (c *copier) copyChunks(ctx context.Context, s chunkList, prefix string) error {
	if s.n == 0 {
		return nil
	}
	held := store.TakeInventory(ctx, c.to, store.InventoryOptions{Chunks: int64(s.n), Prefix: prefix})
	defer held.Close()
	for lo := 0; lo < s.n; lo += batchSize {
		if err := c.copyBatch(ctx, s.slice(lo, min(lo+batchSize, s.n)), held); err != nil {
			return err
		}
	}
	return nil
}

func (c *copier) copyBatch(ctx context.Context, chunks []chunk, held store.Haser) error {
	before := c.report
	err := runWorkers(ctx, len(chunks), c.options.Workers, func() func(context.Context, int, int) error {
		w := &copyWorker{copier: c, loader: newRunLoader(c.source), held: held}
		return func(ctx context.Context, lo, hi int) error { return w.copyRun(ctx, chunks[lo:hi], lo) }
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

func (c *copier) copiedAll(x *blob.Index) bool {
	for _, chunk := range x.All() {
		if _, bad := c.failed[chunk.Digest]; bad {
			return false
		}
	}
	return true
}

// copyWorker is the state of one worker.
type copyWorker struct {
	*copier
	loader  *runLoader
	held    store.Haser
	lacking []chunk
	places  []int
}

func (w *copyWorker) copyRun(ctx context.Context, chunks []chunk, at int) error {
	w.lacking, w.places = w.lacking[:0], w.places[:0]
	for i, c := range chunks {
		has, err := w.held.Has(ctx, c.digest)
		if err != nil {
			return fmt.Errorf("checking %v for chunk %v: %w", w.to, c.digest, err)
		}
		if has {
			w.countChunk(c, func(r *CopyReport) { r.Held++ })
		} else {
			w.lacking, w.places = append(w.lacking, c), append(w.places, at+i)
		}
	}
	if len(w.lacking) == 0 {
		return nil
	}
	errs, err := w.loadLacking(ctx)
	if err != nil {
		return err
	}
	for i, c := range w.lacking {
		if err := w.putChunk(ctx, c, w.places[i], errs[i], &w.loader.raws[i]); err != nil {
			return err
		}
	}
	return nil
}

// loadLacking reads and verifies the lacking chunks, and returns one error for each.
func (w *copyWorker) loadLacking(ctx context.Context) (errs []error, err error) {
	if w.down.Load() {
		err = fmt.Errorf("reading %s: %w", w.name, store.ErrUnavailable)
	} else {
		errs, err = w.loader.loadVerified(ctx, w.lacking)
	}
	if err != nil && (len(w.fallbacks) == 0 || ctx.Err() != nil) {
		return nil, err
	}
	if err != nil {
		w.down.Store(true)
		errs = slices.Repeat([]error{err}, len(w.lacking))
	}
	for i, c := range w.lacking {
		if errs[i] == nil {
			continue
		}
		found, failed := loadAny(ctx, w.fallbacks, c, &w.loader.raws[i])
		switch {
		case failed != nil:
			return nil, failed
		case found:
			errs[i] = nil
		case !isChunkError(errs[i]):
			return nil, errs[i]
		}
	}
	return errs, nil
}

// putChunk writes a chunk, or reports its error.
func (w *copyWorker) putChunk(ctx context.Context, c chunk, at int, err error, raw *store.Raw) error {
	if err != nil {
		w.recordFailure(c, placedFinding{at, Finding{Kind: kindOf(err, -1, int64(len(raw.Stored))), Name: c.name(), Why: err.Error()}})
		return nil
	}
	stored, err := w.writer.PutRaw(ctx, c.digest, raw)
	if err != nil {
		return err
	}
	w.countChunk(c, func(r *CopyReport) { r.Copied.addChunk(stored) })
	return nil
}

func (w *copyWorker) recordFailure(c chunk, f placedFinding) {
	w.countChunk(c, func(r *CopyReport) {
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

// countChunk changes the report by one chunk, and shows it.
func (w *copyWorker) countChunk(c chunk, change func(r *CopyReport)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.report.Wanted++
	w.report.Done += c.size
	change(&w.report)
	if w.options.Show != nil {
		w.options.Show(w.report)
	}
}

// DistinctBytes returns the bytes of the distinct chunks of the indexes that are in none of the indexes except.
func DistinctBytes(indexes, except []*blob.Index) (bytes int64) {
	for _, r := range distinctRows(indexes, except) {
		bytes += int64(r.size)
	}
	return bytes
}
