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

// VerifyOptions say what to look at, and what to do about what is wrong.
type VerifyOptions struct {
	Algorithm *blob.Algorithm // of the digests; nil finds out, and takes both in one store
	Indexes   []*blob.Index   // look at their chunks only; then the store need not be listed
	Workers   int             // how many read and hash at once; at least one does
	// Bucket is the same store, to be changed by Repair and Remove.
	Bucket store.Bucket
	// Repair are stores to replace damaged, empty and missing chunks from, in this order.
	Repair []store.Reader
	// Remove takes away damaged and empty chunks that could not be repaired: no reader can use them, and
	// writers take them for chunks that are there. The bucket has to be a store.Remover.
	Remove bool
	After  *Mark                // go on behind it, and find again what was found before it
	Found  func(Finding)        // called for each thing that is wrong, in order; may be nil
	Done   func(Mark) error     // called now and then with what is finished, durably; an error ends it. May be nil
	Show   func(r VerifyReport) // called now and then, never twice at once; may be nil
}

// Mark is how far a Verify has come.
type Mark struct {
	Digest   blob.Digest  `json:"digest"`   // what is named up to here is done
	Report   VerifyReport `json:"report"`   // of that
	Findings []Finding    `json:"findings"` // the first of them
}

// VerifyReport is what was found.
type VerifyReport struct {
	Chunks   int64  `json:"chunks"`       // that were read and hashed, or should have been
	Bytes    int64  `json:"stored_bytes"` // of them, as stored
	Damaged  int64  `json:"damaged"`
	Empty    int64  `json:"empty"`
	Missing  int64  `json:"missing"`
	Unknown  int64  `json:"unknown"`
	Repaired int64  `json:"repaired"` // of these
	Removed  int64  `json:"removed"`
	Misnamed Others `json:"misnamed"`
	Foreign  Others `json:"foreign"`
}

// Bad is how many chunks are damaged, empty or missing, and were not repaired.
func (r VerifyReport) Bad() int64 { return r.Damaged + r.Empty + r.Missing - r.Repaired }

// Verify reads every chunk of a store and hashes it. What is wrong is in the report, and told to Found; any other
// failure of the store is an error. A chunk that is removed or replaced meanwhile is no mistake. What Done was
// told need not be looked at again: a Verify with it as After goes on from there, and does not see what was
// written before that place since.
func Verify(ctx context.Context, r store.Reader, o VerifyOptions) (VerifyReport, error) {
	v := &verifier{source: newSource(r, o.Algorithm), options: o}
	if err := v.prepare(r); err != nil {
		return VerifyReport{}, err
	}
	if v.writer != nil {
		defer v.writer.Close()
	}
	if o.After != nil {
		v.report = o.After.Report
		for _, f := range o.After.Findings {
			v.tell(f)
		}
	}
	err := v.run(ctx, r)
	return v.report, err
}

type verifier struct {
	source
	options VerifyOptions
	writer  *store.Writer
	remover store.Remover
	repair  []source

	mu       sync.Mutex // guards what follows
	report   VerifyReport
	findings []numbered // of the stretch

	told []Finding // the first of them
}

// numbered is a finding with its place in the stretch.
type numbered struct {
	at int
	Finding
}

func (v *verifier) prepare(r store.Reader) (err error) {
	var can bool
	if v.options.Remove {
		if v.remover, can = store.As[store.Remover](v.options.Bucket); !can {
			return fmt.Errorf("removing from %v: %w", r, errors.ErrUnsupported)
		}
	}
	v.repair = newSources(v.options.Repair, v.options.Algorithm)
	if len(v.repair) == 0 {
		return nil
	}
	v.writer, err = store.NewWriter(v.options.Bucket, store.WriterOptions{})
	return err
}

func (v *verifier) run(ctx context.Context, r store.Reader) error {
	if len(v.options.Indexes) > 0 {
		return v.chunks(ctx, wanted(v.options.Indexes))
	}
	l, err := listerOf(r)
	if err != nil {
		return err
	}
	for s, err := range shards(ctx, v.skipping(l)) {
		if err != nil {
			return fmt.Errorf("listing %v: %w", r, err)
		}
		if err := v.chunks(ctx, listed(s.objects)); err != nil {
			return err
		}
		// Behind the chunks, since a mark among them does not have what comes again with the shard.
		v.report.Foreign.add(s.foreign)
		v.report.Misnamed.add(s.misnamed)
		for _, name := range s.misnamed.First {
			v.tell(Finding{Kind: Misnamed, Name: name})
		}
	}
	return ctx.Err()
}

// skipping is l without the prefixes of chunks that are done.
func (v *verifier) skipping(l store.Lister) store.Lister {
	if v.options.After == nil {
		return l
	}
	return tail{l, v.options.After.Digest.String()}
}

// tail lists what may be behind a digest.
type tail struct {
	store.Lister
	after string // hexadecimal
}

func (t tail) List(ctx context.Context, prefix string) iter.Seq2[store.Object, error] {
	if len(prefix) > 0 && len(prefix) <= depthMost && prefix < t.after[:len(prefix)] && isHex(prefix) {
		return func(func(store.Object, error) bool) {}
	}
	return t.Lister.List(ctx, prefix)
}

func isHex(text string) bool { return len(bytes.Trim([]byte(text), hexDigits)) == 0 }

// series are chunks by digest, made as they are needed.
type series struct {
	n      int
	at     func(i int) chunk
	stored func(i int) int64 // bytes, as listed; negative when that is not known
}

// listed are the chunks of objects.
func listed(objects []object) series {
	at := func(i int) chunk {
		c := chunk{digest: objects[i].digest, form: plain}
		if objects[i].packed {
			c.form = packed
		}
		return c
	}
	return series{len(objects), at, func(i int) int64 { return objects[i].size }}
}

// wanted are the different chunks of indexes.
func wanted(indexes []*blob.Index) series {
	t := newTable()
	for i, x := range indexes {
		t.add(x, int32(i))
	}
	rows := t.sorted()
	at := func(i int) chunk { return chunk{digest: rows[i].digest, size: int64(rows[i].size)} }
	return series{len(rows), at, func(int) int64 { return -1 }}
}

// part is the chunks from lo to hi.
func (s series) part(lo, hi int) []chunk {
	chunks := make([]chunk, 0, hi-lo)
	for i := lo; i < hi; i++ {
		chunks = append(chunks, s.at(i))
	}
	return chunks
}

// chunks verifies those behind the mark, a stretch at a time.
func (v *verifier) chunks(ctx context.Context, s series) error {
	lo := 0
	if after := v.options.After; after != nil {
		lo = sort.Search(s.n, func(i int) bool { d := s.at(i).digest; return bytes.Compare(d[:], after.Digest[:]) > 0 })
	}
	for lo < s.n {
		hi := min(lo+stretch, s.n)
		for hi < s.n && s.at(hi).digest == s.at(hi-1).digest {
			hi++ // both forms of a chunk are on one side of a mark
		}
		if err := v.stretch(ctx, s.part(lo, hi), func(i int) int64 { return s.stored(lo + i) }); err != nil {
			return err
		}
		lo = hi
	}
	return nil
}

func (v *verifier) stretch(ctx context.Context, chunks []chunk, stored func(int) int64) error {
	before := v.report
	err := work(ctx, len(chunks), v.options.Workers, func() func(context.Context, int, int) error {
		w := verifyWorker{verifier: v, p: newProver(v.source)}
		return func(ctx context.Context, lo, hi int) error { return w.check(ctx, chunks[lo:hi], lo, stored) }
	})
	if err == nil && v.writer != nil {
		err = v.writer.Commit(ctx)
	}
	if err != nil {
		v.report, v.findings = before, nil // what was not made durable counts for nothing
		return err
	}
	sort.Slice(v.findings, func(i, j int) bool { return v.findings[i].at < v.findings[j].at })
	for _, f := range v.findings {
		v.tell(f.Finding)
	}
	v.findings = v.findings[:0]
	if v.options.Done == nil {
		return nil
	}
	return v.options.Done(Mark{chunks[len(chunks)-1].digest, v.report, v.told})
}

func (v *verifier) tell(f Finding) {
	if len(v.told) < MostFindings {
		v.told = append(v.told, f)
	}
	if v.options.Found != nil {
		v.options.Found(f)
	}
}

// verifyWorker is one of those who read and hash.
type verifyWorker struct {
	*verifier
	p     *prover
	spare store.Raw
}

func (w *verifyWorker) check(ctx context.Context, chunks []chunk, at int, stored func(int) int64) error {
	errs, err := w.p.prove(ctx, chunks)
	if err != nil {
		return err
	}
	for i, c := range chunks {
		if err := w.judge(ctx, c, at+i, stored(at+i), errs[i], int64(len(w.p.raws[i].Stored))); err != nil {
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

// judge notes what came out for one chunk, and does what is to be done about it.
func (w *verifyWorker) judge(ctx context.Context, c chunk, at int, listed int64, err error, stored int64) error {
	kind := kindOf(err, listed, stored)
	if kind == Missing && listed >= 0 {
		return nil // it was there when the store was listed, and was removed since
	}
	fate := Left
	if kind == Damaged || kind == Empty || kind == Missing {
		var failed error
		if fate, failed = w.mend(ctx, c, kind); failed != nil {
			return failed
		}
	}
	f := Finding{Kind: kind, Name: c.name(), Fate: fate}
	if err != nil {
		f.Why = err.Error()
	}
	w.note(numbered{at, f}, stored)
	return nil
}

// kindOf is what an outcome means, or "" for a chunk that is right.
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

func (v *verifier) note(f numbered, stored int64) {
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

// mend replaces a chunk by another store's, or else removes what there is, if it was asked to.
func (w *verifyWorker) mend(ctx context.Context, c chunk, kind Kind) (Fate, error) {
	found, err := loadAny(ctx, w.repair, c, &w.spare)
	if err != nil {
		return Left, fmt.Errorf("repairing chunk %v: %w", c.digest, err)
	}
	if found {
		return Repaired, w.replace(ctx, c)
	}
	if w.remover == nil || kind == Missing {
		return Left, nil
	}
	return Removed, w.remove(ctx, c)
}

func (w *verifyWorker) replace(ctx context.Context, c chunk) (err error) {
	if c.form == plain {
		return w.options.Bucket.Write(ctx, c.name(), w.spare.Plain)
	}
	_, err = w.writer.PutRaw(ctx, c.digest, &w.spare)
	return err
}

// remove removes a chunk under the name that it was read by, unless somebody has replaced it meanwhile.
func (w *verifyWorker) remove(ctx context.Context, c chunk) error {
	forms := []form{c.form}
	if c.form == either {
		forms = []form{packed, plain}
	}
	for _, f := range forms {
		c.form = f
		err := w.load(ctx, c, &w.spare)
		if err == nil && w.is(c.digest, w.spare.Plain) || errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil && !is[*store.CorruptError](err) {
			return err
		}
		if err := w.remover.Remove(ctx, c.name()); err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
	return nil
}
