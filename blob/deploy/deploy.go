// Package deploy puts an image onto a target of this machine. It claims the target, learns the content
// of the seeds and the target, plans, assembles, makes the target final, and remembers its content. It
// prints nothing: progress and notes are typed values. It does not know flags, terminals, or how stores
// are opened.
//
// A job is Claim, NewPlan and Plan.Run. Its preview is Look, NewPlan and Plan.Preview.
package deploy

import (
	"context"
	"io"
	"sync"
	"time"

	"cairn/blob"
	"cairn/blob/assemble"
	"cairn/blob/release"
	"cairn/blob/scan"
	"cairn/internal/blockdev"
	"cairn/seed"
	"cairn/seed/known"
	"cairn/seed/learn"
	"cairn/store"
)

// Options are the settings of a job. With the zero value it has no seeds, remembers nothing and reports
// nothing.
type Options struct {
	Force    []string      // the checks of blockdev.Liftable to skip
	LockWait time.Duration // how long to wait while another program holds the lock on the target's disk

	Seeds    []learn.Place
	Releases release.Access // reads the indexes of seeds
	State    known.Dir      // records of devices; "" for none
	ReadOnly bool           // State is read, but not changed
	Name     string         // of the index; recorded in State while the job is unfinished

	Deltas Deltas

	Workers int   // number of concurrent workers, at least 1
	Memory  int64 // as in assemble.Options
	Far     bool  // as in assemble.Options
	Verify  Verify
	Tail    Tail
	// ImageSum is the SHA-256 that the image must have; nil if it is not known. Another sum is an
	// *assemble.ImageSumError: a target in place stays invalid, and a file does not get its name.
	ImageSum *assemble.ImageSum

	// Notes is called with each event that does not end the job. May be nil.
	Notes func(Note)
	// Scanning is called before a seed or the target is scanned. It returns two functions: progress is
	// called during the scan, never concurrently, and end after it. May be nil.
	Scanning func(name string, size int64) (progress func(scan.Stats), end func())
}

func (o *Options) emitNote(n Note) {
	if o.Notes != nil {
		o.Notes(n)
	}
}

// Verify selects the part of the image that is read back from the medium and compared.
type Verify string

// The empty Verify is VerifyChanged for a target in place, and VerifyNone for a file or stream.
const (
	VerifyNone    Verify = "none"
	VerifyChanged Verify = "changed"
	VerifyAll     Verify = "all"
)

func (o *Options) verifyExtent(inPlace bool) assemble.Extent {
	switch {
	case o.Verify == VerifyAll:
		return assemble.All
	case o.Verify == VerifyChanged || o.Verify == "" && inPlace:
		return assemble.Changed
	}
	return assemble.Nothing
}

// Plan is a seed.Plan for a target. It keeps the seeds open until Close.
type Plan struct {
	*seed.Plan
	options Options
	target  *Target
	claimed *Target // refuses seeds; it is the target, or what Stream writes to
	lo, hi  int     // the chunks that will be written: [lo, hi)
	opened  []learn.Opened
	own     int        // one more than the number of the seed that is the target itself; 0 for none
	delta   *planDelta // nil for none
}

// NewPlan opens the seeds, learns their content and the target's, and plans. An unusable seed is left
// out, with a note. A seed that shares bytes with the target is a *blockdev.RefusedError.
func NewPlan(ctx context.Context, x *blob.Index, t *Target, o Options) (*Plan, error) {
	return newPlan(ctx, x, &Plan{options: o, target: t, claimed: t, hi: x.Len()})
}

// NewSequencePlan returns the plan for Plan.Stream, which writes a part of the image of x to an output. The
// part's writer is not used. A seed that shares bytes with the output is a *blockdev.RefusedError.
func NewSequencePlan(ctx context.Context, x *blob.Index, part assemble.Sink, to *Sequence, o Options) (*Plan, error) {
	p := &Plan{options: o, target: &Target{blank: true}, claimed: to.target}
	if part.Size > 0 {
		p.lo, p.hi = x.Find(part.Offset), x.Find(part.Offset+part.Size-1)+1
	}
	return newPlan(ctx, x, p)
}

func newPlan(ctx context.Context, x *blob.Index, p *Plan) (*Plan, error) {
	p.opened = p.options.newLearner().Open(p.options.Seeds)
	if err := p.buildPlan(ctx, x); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// Close closes the seeds and the delta.
func (p *Plan) Close() {
	if p.delta != nil {
		p.delta.file.Close()
	}
	learn.Close(p.opened)
}

// SeedNames returns the names of the seeds, in the order of assemble.Stats.Seeds.
func (p *Plan) SeedNames() []string {
	names := []string{}
	for _, s := range p.Seeds {
		names = append(names, s.Name)
	}
	return names
}

func (p *Plan) buildPlan(ctx context.Context, x *blob.Index) error {
	t, l := p.target, p.options.newLearner()
	if err := p.claimed.refuseSeeds(p.opened); err != nil {
		return err
	}
	l.noteUnfinished(t)
	seeds, err := l.learnSeeds(ctx, x, p.opened)
	if err != nil {
		return err
	}
	if held := l.learnTarget(ctx, x, t, len(seeds) > 0); held != nil {
		seeds = append(seeds, seed.Seed{Name: t.name + " (before)", Index: held, Data: t.before})
		if t.inPlace {
			p.own = len(seeds)
		}
	}
	p.Plan = seed.NewPlan(x, seeds...)
	return p.useDelta(ctx)
}

// Run writes the image onto the target and makes the target final: a file gets its name, and the kernel
// reads the partition table again. When Run returns nil, the image is on the medium. An archive of a
// directory tree is a release.TreeError. progress is called as in assemble.Options; it may be nil.
func (p *Plan) Run(ctx context.Context, from store.Getter, progress func(assemble.Stats)) (stats assemble.Stats, err error) {
	t, l, o := p.target, p.options.newLearner(), p.assembleOptions(progress)
	defer func() { t.failed = err }()
	var end func()
	o.Delta, end = p.openDelta(ctx)
	defer end()
	if t.stream != nil {
		to := assemble.Sink{Writer: t.stream, Size: p.Index.Size()}
		stats, err = assemble.Stream(ctx, p.Plan, from, to, o)
	} else {
		stats, err = assemble.Run(ctx, p.Plan, from, t.dest, o)
	}
	if err != nil {
		return stats, err
	}
	if err := t.finalize(ctx, p.Index.Size(), &p.options); err != nil {
		return stats, err
	}
	l.recordDone(t, p.Index)
	return stats, nil
}

// Stream writes a part of the image in order to a writer.
func (p *Plan) Stream(ctx context.Context, from store.Getter, to assemble.Sink) error {
	o := assemble.Options{Memory: p.options.Memory, Far: p.options.Far}
	var end func()
	o.Delta, end = p.openDelta(ctx)
	defer end()
	_, err := assemble.Stream(ctx, p.Plan, from, to, o)
	return err
}

func (p *Plan) assembleOptions(progress func(assemble.Stats)) assemble.Options {
	o, t := &p.options, p.target
	return assemble.Options{
		New: t.blank, Memory: o.Memory, Far: o.Far, Own: p.own, Verify: o.verifyExtent(t.inPlace), ImageSum: o.ImageSum,
		Stream: t.stream != nil, Progress: progress, Inspect: release.RefuseArchive,
		Changing: func() error {
			o.newLearner().recordBegin(t, p.Index)
			return nil
		},
	}
}

type getChunk = func(ctx context.Context, d blob.Digest, dst []byte) error

// Preview predicts Run by reading the same sources, and writes nothing. It returns the source of each
// chunk. get fetches a chunk from the stores. It is called at most once, for the first chunk, and only
// if the index has the flags of a directory tree.
func (p *Plan) Preview(ctx context.Context, get getChunk, progress func(assemble.Stats)) (assemble.Stats, []seed.Step, error) {
	var held io.ReaderAt
	if t := p.target; t.whole || t.inPlace {
		held = t.before
	}
	if err := p.refuseArchive(ctx, get, held); err != nil {
		return assemble.Stats{}, nil, err
	}
	return assemble.Preview(ctx, p.Plan, held, p.assembleOptions(progress))
}

// FetchCalls returns the chunks that Run fetches from the stores, in one call of their Get for each list. step returns the
// source of a chunk, as Preview does.
func (p *Plan) FetchCalls(step func(chunk int) seed.Step) [][]int {
	return assemble.FetchCalls(p.Plan, step, p.assembleOptions(nil))
}

// refuseArchive applies release.RefuseArchive to the plan's image. An unreadable first chunk is left to
// Run.
func (p *Plan) refuseArchive(ctx context.Context, get getChunk, held io.ReaderAt) error {
	x := p.Index
	if x.Len() == 0 || x.IsZero(0) {
		return nil
	}
	first := make([]byte, x.At(0).Size)
	if p.readFirst(held, first) || x.HasFileFlags() && get(ctx, x.At(0).Digest, first) == nil {
		return release.RefuseArchive(first)
	}
	return ctx.Err()
}

// readFirst reads the image's first chunk from the target or a seed. It reports whether one of them
// holds it.
func (p *Plan) readFirst(held io.ReaderAt, first []byte) bool {
	holds := func(r io.ReaderAt, off int64) bool {
		n, _ := r.ReadAt(first, off)
		return n == len(first) && p.Index.Algorithm().Sum(first) == p.Index.At(0).Digest
	}
	if held != nil && holds(held, 0) {
		return true
	}
	for _, place := range p.Places(0) {
		if holds(p.Seeds[place.Seed].Data, place.Offset) {
			return true
		}
	}
	return false
}

var (
	_ assemble.Target   = (*assembleTarget)(nil)
	_ assemble.Pacer    = (*assembleTarget)(nil)
	_ assemble.Rereader = (*assembleTarget)(nil)
	_ assemble.Cloner   = (*assembleTarget)(nil)
)

// assembleTarget is a claimed device or file as an assemble.Target.
type assembleTarget struct {
	*blockdev.Target

	mu     sync.Mutex         // guards medium
	medium *blockdev.ReadBack // reads past the page cache; nil until its first use
}

// ReadBack implements assemble.Rereader.
func (b *assembleTarget) ReadBack(p []byte, off int64) (int, error) {
	medium, err := b.openMedium()
	if err != nil {
		return 0, err
	}
	return medium.ReadAt(p, off)
}

func (b *assembleTarget) openMedium() (_ *blockdev.ReadBack, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.medium == nil {
		b.medium, err = b.File.ReadBack()
	}
	return b.medium, err
}

// minClone is the least number of bytes that are shared rather than copied.
const minClone = 64 << 10

// Clone implements assemble.Cloner, for seeds that are files.
func (b *assembleTarget) Clone(from io.ReaderAt, at, off, n int64) (lo, hi int64) {
	const block = 4096
	src, ok := from.(*blockdev.File)
	lo, hi = (off+block-1)/block*block, (off+n)/block*block
	if !ok || (at-off)%block != 0 || hi-lo < minClone {
		return 0, 0
	}
	if _, err := b.CloneFrom(src, at+lo-off, lo, hi-lo); err != nil {
		return 0, 0 // assemble copies the bytes instead
	}
	return lo, hi
}
