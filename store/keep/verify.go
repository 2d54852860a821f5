package keep

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"sort"
	"sync"

	"cairn/blob"
	"cairn/store"
)

// VerifyOptions configure a Verify.
type VerifyOptions struct {
	Algorithm *blob.Algorithm // of the digests; nil detects it, and accepts both in one store
	Indexes   []*blob.Index   // verify only their chunks; then the store need not be listed
	Workers   int             // chunks read and hashed at once; at least one
	// Bucket is the verified store, for the writes of Repair and Remove.
	Bucket store.Bucket
	// Repair lists the stores to replace damaged, empty and missing chunks from, in this order.
	Repair []store.Reader
	// Remove removes damaged and empty chunks that could not be repaired: no reader can use them,
	// and writers assume that they are present. The bucket must be a store.Remover.
	Remove bool
	After  *Mark                // resume after it, and report its findings again
	Found  func(Finding)        // called for each finding, in order; may be nil
	Done   func(Mark) error     // called after each batch, when repairs are durable; an error ends Verify. May be nil
	Show   func(r VerifyReport) // called after each run of chunks, never concurrently; may be nil
}

// Mark is the progress of a Verify.
type Mark struct {
	Digest   blob.Digest  `json:"digest"`   // chunks up to this digest are done
	Report   VerifyReport `json:"report"`   // on these chunks
	Findings []Finding    `json:"findings"` // at most MostFindings
}

// VerifyReport counts the chunks and findings of a Verify.
type VerifyReport struct {
	Chunks   int64  `json:"chunks"`       // read and hashed, or failed to be
	Bytes    int64  `json:"stored_bytes"` // of these chunks, as stored
	Damaged  int64  `json:"damaged"`
	Empty    int64  `json:"empty"`
	Missing  int64  `json:"missing"`
	Unknown  int64  `json:"unknown"`
	Repaired int64  `json:"repaired"` // of these findings
	Removed  int64  `json:"removed"`
	Misnamed Others `json:"misnamed"`
	Foreign  Others `json:"foreign"`
}

// Bad returns how many chunks are damaged, empty or missing, and were not repaired.
func (r VerifyReport) Bad() int64 { return r.Damaged + r.Empty + r.Missing - r.Repaired }

// Verify reads and hashes every chunk of a store. Defects are in the report and passed to Found;
// any other failure of the store is an error. A chunk that is removed or replaced during the run is
// not a defect.
//
// A Verify with a Mark from Done as After resumes there. It does not see chunks that were written
// before that place since.
func Verify(ctx context.Context, r store.Reader, o VerifyOptions) (VerifyReport, error) {
	v := &verifier{source: newSource(r, o.Algorithm), options: o}
	if err := v.openRepair(r); err != nil {
		return VerifyReport{}, err
	}
	if v.writer != nil {
		defer v.writer.Close()
	}
	if o.After != nil {
		v.report = o.After.Report
		for _, f := range o.After.Findings {
			v.reportFinding(f)
		}
	}
	err := v.verifyAll(ctx, r)
	return v.report, err
}

type verifier struct {
	source
	options    VerifyOptions
	writer     *store.Writer
	remover    store.Remover
	repairFrom []source

	mu       sync.Mutex // guards the fields below
	report   VerifyReport
	findings []placedFinding // of the present batch

	reported []Finding // the first MostFindings findings
}

// placedFinding is a finding with its place in the batch.
type placedFinding struct {
	at int
	Finding
}

func (v *verifier) openRepair(r store.Reader) (err error) {
	var can bool
	if v.options.Remove {
		if v.remover, can = store.As[store.Remover](v.options.Bucket); !can {
			return fmt.Errorf("removing from %v: %w", r, errors.ErrUnsupported)
		}
	}
	v.repairFrom = newSources(v.options.Repair, v.options.Algorithm)
	if len(v.repairFrom) == 0 {
		return nil
	}
	v.writer, err = store.NewWriter(v.options.Bucket, store.WriterOptions{})
	return err
}

func (v *verifier) verifyAll(ctx context.Context, r store.Reader) error {
	if len(v.options.Indexes) > 0 {
		return v.verifyChunks(ctx, wantedChunks(v.options.Indexes, nil))
	}
	l, err := listerOf(r)
	if err != nil {
		return err
	}
	if after := v.options.After; after != nil {
		l = listerAfter{l, after.Digest.String()}
	}
	for s, err := range listShards(ctx, l) {
		if err != nil {
			return fmt.Errorf("listing %v: %w", r, err)
		}
		if err := v.verifyChunks(ctx, listedChunks(s.objects)); err != nil {
			return err
		}
		// After the chunks: a resumed Verify counts the shard's other objects again, so no mark of
		// its chunks may include them.
		v.report.Foreign.add(s.foreign)
		v.report.Misnamed.add(s.misnamed)
		for _, name := range s.misnamed.First {
			v.reportFinding(Finding{Kind: Misnamed, Name: name})
		}
	}
	return ctx.Err()
}

// listerAfter lists only the prefixes that may hold digests beyond after.
type listerAfter struct {
	store.Lister
	after string // hexadecimal
}

func (t listerAfter) List(ctx context.Context, prefix string) iter.Seq2[store.Object, error] {
	if len(prefix) > 0 && len(prefix) <= maxDepth && prefix < t.after[:len(prefix)] && isHex(prefix) {
		return func(func(store.Object, error) bool) {}
	}
	return t.Lister.List(ctx, prefix)
}

func isHex(text string) bool { return len(bytes.Trim([]byte(text), hexDigits)) == 0 }

// chunkList is a list of chunks, sorted by digest and produced on demand.
type chunkList struct {
	n      int
	at     func(i int) chunk
	stored func(i int) int64 // bytes, as listed; negative is unknown
}

// listedChunks returns the chunks of objects.
func listedChunks(objects []object) chunkList {
	at := func(i int) chunk {
		c := chunk{digest: objects[i].digest, form: plain}
		if objects[i].packed {
			c.form = packed
		}
		return c
	}
	return chunkList{len(objects), at, func(i int) int64 { return objects[i].size }}
}

// wantedChunks returns the distinct chunks of the indexes that are in none of the indexes except.
func wantedChunks(indexes, except []*blob.Index) chunkList {
	rows := distinctRows(indexes, except)
	at := func(i int) chunk { return chunk{digest: rows[i].digest, size: int64(rows[i].size)} }
	return chunkList{len(rows), at, func(int) int64 { return -1 }}
}

// slice returns the chunks from lo up to hi.
func (s chunkList) slice(lo, hi int) []chunk {
	chunks := make([]chunk, 0, hi-lo)
	for i := lo; i < hi; i++ {
		chunks = append(chunks, s.at(i))
	}
	return chunks
}

// verifyChunks verifies the chunks beyond the mark, one batch at a time.
func (v *verifier) verifyChunks(ctx context.Context, s chunkList) error {
	lo := 0
	if after := v.options.After; after != nil {
		lo = sort.Search(s.n, func(i int) bool { d := s.at(i).digest; return bytes.Compare(d[:], after.Digest[:]) > 0 })
	}
	for lo < s.n {
		hi := min(lo+batchSize, s.n)
		for hi < s.n && s.at(hi).digest == s.at(hi-1).digest {
			hi++ // keep both forms of a chunk on one side of a mark
		}
		if err := v.verifyBatch(ctx, s.slice(lo, hi), func(i int) int64 { return s.stored(lo + i) }); err != nil {
			return err
		}
		lo = hi
	}
	return nil
}

func (v *verifier) verifyBatch(ctx context.Context, chunks []chunk, stored func(int) int64) error {
	before := v.report
	err := runWorkers(ctx, len(chunks), v.options.Workers, func() func(context.Context, int, int) error {
		w := verifyWorker{verifier: v, loader: newRunLoader(v.source)}
		return func(ctx context.Context, lo, hi int) error { return w.verifyRun(ctx, chunks[lo:hi], lo, stored) }
	})
	if err == nil && v.writer != nil {
		err = v.writer.Commit(ctx)
	}
	if err != nil {
		v.report, v.findings = before, nil // results that were not committed do not count
		return err
	}
	sort.Slice(v.findings, func(i, j int) bool { return v.findings[i].at < v.findings[j].at })
	for _, f := range v.findings {
		v.reportFinding(f.Finding)
	}
	v.findings = v.findings[:0]
	if v.options.Done == nil {
		return nil
	}
	return v.options.Done(Mark{chunks[len(chunks)-1].digest, v.report, v.reported})
}

func (v *verifier) reportFinding(f Finding) {
	if len(v.reported) < MostFindings {
		v.reported = append(v.reported, f)
	}
	if v.options.Found != nil {
		v.options.Found(f)
	}
}

// verifyWorker is the state of one worker.
type verifyWorker struct {
	*verifier
	loader *runLoader
	spare  store.Raw
}

func (w *verifyWorker) verifyRun(ctx context.Context, chunks []chunk, at int, stored func(int) int64) error {
	errs, err := w.loader.loadVerified(ctx, chunks)
	if err != nil {
		return err
	}
	for i, c := range chunks {
		if err := w.handleOutcome(ctx, c, at+i, stored(at+i), errs[i], int64(len(w.loader.raws[i].Stored))); err != nil {
			return err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.options.Show != nil {
		w.options.Show(w.verifier.report)
	}
	return nil
}

// handleOutcome records the outcome for one chunk, and repairs or removes it if necessary.
func (w *verifyWorker) handleOutcome(ctx context.Context, c chunk, at int, listed int64, err error, stored int64) error {
	kind := kindOf(err, listed, stored)
	if kind == Missing && listed >= 0 {
		return nil // it was listed, and removed since
	}
	fate := Left
	if kind == Damaged || kind == Empty || kind == Missing {
		var failed error
		if fate, failed = w.repairOrRemove(ctx, c, kind); failed != nil {
			return failed
		}
	}
	f := Finding{Kind: kind, Name: c.name(), Fate: fate}
	if err != nil {
		f.Why = err.Error()
	}
	w.countOutcome(placedFinding{at, f}, stored)
	return nil
}

// kindOf returns the kind of an outcome, or "" for an intact chunk.
func kindOf(err error, listed, stored int64) Kind {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, store.ErrNotFound):
		return Missing
	case errors.Is(err, errors.ErrUnsupported):
		return Unknown
	case listed == 0 || stored == 0 && !errors.Is(err, store.ErrTooLarge):
		return Empty
	}
	return Damaged
}

func (v *verifier) countOutcome(f placedFinding, stored int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	r := &v.report
	r.Chunks++
	r.Bytes += stored
	counters := map[Kind]*int64{Damaged: &r.Damaged, Empty: &r.Empty, Missing: &r.Missing, Unknown: &r.Unknown}
	if n := counters[f.Kind]; n != nil {
		*n++
		v.findings = append(v.findings, f)
	}
	switch f.Fate {
	case Repaired:
		r.Repaired++
	case Removed:
		r.Removed++
	}
}

// repairOrRemove replaces a chunk from another store, or removes it if the options say so.
func (w *verifyWorker) repairOrRemove(ctx context.Context, c chunk, kind Kind) (Fate, error) {
	found, err := loadAny(ctx, w.repairFrom, c, &w.spare)
	if err != nil {
		return Left, fmt.Errorf("repairing chunk %v: %w", c.digest, err)
	}
	if found && c.form == plain {
		return Repaired, w.options.Bucket.Write(ctx, c.name(), w.spare.Plain)
	}
	if found {
		_, err = w.writer.PutRaw(ctx, c.digest, &w.spare)
		return Repaired, err
	}
	if w.remover == nil || kind == Missing {
		return Left, nil
	}
	return Removed, w.removeChunk(ctx, c)
}

// removeChunk removes a chunk under the names that were read, unless an intact chunk has replaced
// it.
func (w *verifyWorker) removeChunk(ctx context.Context, c chunk) error {
	forms := []form{c.form}
	if c.form == either {
		forms = []form{packed, plain}
	}
	for _, f := range forms {
		c.form = f
		err := w.loadChunk(ctx, c, &w.spare)
		if err == nil && w.matches(c.digest, w.spare.Plain) || errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil && !isCorrupt(err) {
			return err
		}
		if err := w.remover.Remove(ctx, c.name()); err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
	return nil
}
