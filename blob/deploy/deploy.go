// Package deploy puts an image onto a target of this machine: it claims the target, learns what seeds and target hold,
// plans, assembles, finishes the target and remembers what it holds. It prints nothing: progress and notes are typed
// values. It does not know flags, terminals, or how stores are opened.
//
// A job is Claim, NewPlan and Plan.Run; what that would do is Look, NewPlan and Plan.Preview.
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
	"cairn/store"
)

// Options say how a target is claimed, what is learnt, and how the image is put there. The zero value is good: it has
// no seeds, remembers nothing and reports nothing.
type Options struct {
	Force    []string      // the checks of blockdev.Liftable that the target need not pass
	LockWait time.Duration // how long to wait for the lock on the target's disk that other programs hold

	Seeds    []Place
	Releases release.Access // reads the indexes of seeds
	State    known.Dir      // what is known of devices; "" is none
	ReadOnly bool           // State is read, not changed
	Name     string         // of the index, kept in State while the image is not whole on the target

	Workers int   // how many compute at once; at least one does
	Memory  int64 // as in assemble.Options
	Far     bool  // as in assemble.Options
	Verify  Verify
	Tail    Tail

	// Notes is called with what happens on the way and does not end the job. May be nil.
	Notes func(Note)
	// Scanning is called before a seed or the target is scanned. It returns what is called with the scan's progress,
	// never twice at once, and at its end. May be nil.
	Scanning func(name string, size int64) (progress func(scan.Stats), end func())
}

func (o *Options) note(n Note) {
	if o.Notes != nil {
		o.Notes(n)
	}
}

// Verify says what of the image is read back from the medium and compared.
type Verify string

// The empty Verify is VerifyChanged for a target in place, and VerifyNone for a file or stream.
const (
	VerifyNone    Verify = "none"
	VerifyChanged Verify = "changed"
	VerifyAll     Verify = "all"
)

func (o *Options) extent(inPlace bool) assemble.Extent {
	switch {
	case o.Verify == VerifyAll:
		return assemble.All
	case o.Verify == VerifyChanged || o.Verify == "" && inPlace:
		return assemble.Changed
	}
	return assemble.Nothing
}

// Plan says for each chunk of an image where it comes from. It holds the seeds open until Close.
type Plan struct {
	*seed.Plan
	options Options
	target  *Target
	opened  []openSeed
	own     int // the number of the seed that is the target itself, plus one; 0 for none
}

// NewPlan opens the seeds, learns what they and the target hold, and plans. A seed that cannot be used is left out, with
// a note. A seed that is the target's own bytes is a *blockdev.RefusedError.
func NewPlan(ctx context.Context, x *blob.Index, t *Target, o Options) (*Plan, error) {
	p := &Plan{options: o, target: t, opened: o.openSeeds()}
	if err := p.learn(ctx, x); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// Close closes the seeds.
func (p *Plan) Close() {
	for _, s := range p.opened {
		s.file.Close()
	}
}

// SeedNames lists the names of the seeds, in the order of assemble.Stats.Seeds.
func (p *Plan) SeedNames() []string {
	names := []string{}
	for _, s := range p.Seeds {
		names = append(names, s.Name)
	}
	return names
}

func (p *Plan) learn(ctx context.Context, x *blob.Index) error {
	t, m := p.target, memory{&p.options}
	if err := t.refuseSeeds(p.opened); err != nil {
		return err
	}
	m.noteUnfinished(t)
	seeds, err := p.learnSeeds(ctx, x, m)
	if err != nil {
		return err
	}
	if held := m.learnTarget(ctx, x, t, len(seeds) > 0); held != nil {
		seeds = append(seeds, seed.Seed{Name: t.name + " (before)", Index: held, Data: t.before})
		if t.inPlace {
			p.own = len(seeds)
		}
	}
	p.Plan = seed.NewPlan(x, seeds...)
	return ctx.Err()
}

// Run puts the image onto the target, and makes the target final: a file gets its name, the kernel reads a new
// partition table. When it returns nil, the image is on the medium. An image that is the archive of a directory tree is
// a release.TreeError. progress is called now and then, never twice at once; it may be nil.
func (p *Plan) Run(ctx context.Context, from store.Getter, progress func(assemble.Stats)) (assemble.Stats, error) {
	stats, err := p.run(ctx, from, p.assembleOptions(progress))
	p.target.failed = err
	return stats, err
}

func (p *Plan) run(ctx context.Context, from store.Getter, o assemble.Options) (stats assemble.Stats, err error) {
	t, m := p.target, memory{&p.options}
	if t.stream != nil {
		to := assemble.Sink{Writer: t.stream, Size: p.Index.Size()}
		stats, err = assemble.Stream(ctx, p.Plan, from, to, o)
	} else {
		stats, err = assemble.Run(ctx, p.Plan, from, t.bytes, o)
	}
	if err != nil {
		return stats, err
	}
	if err := t.finish(ctx, p.Index.Size(), &p.options); err != nil {
		return stats, err
	}
	m.finish(t, p.Index)
	return stats, nil
}

func (p *Plan) assembleOptions(progress func(assemble.Stats)) assemble.Options {
	o, t := &p.options, p.target
	return assemble.Options{
		New: t.blank, Memory: o.Memory, Far: o.Far, Own: p.own, Verify: o.extent(t.inPlace),
		Stream: t.stream != nil, Progress: progress, Inspect: release.RefuseArchive,
		Changing: func() error {
			memory{o}.begin(t, p.Index)
			return nil
		},
	}
}

type getChunk = func(ctx context.Context, d blob.Digest, dst []byte) error

// Preview finds out what Run would do, by reading what it would read, and writes nothing. It returns where each chunk
// comes from. get gets a chunk from the stores: at most the first one, and only of an index with the flags of a tree.
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

// refuseArchive is release.RefuseArchive of the plan's image. A first chunk that cannot be read is left to Run.
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

// readFirst reads the image's first chunk from the target or a seed, and reports whether one of them holds it.
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
	_ assemble.Target   = (*bytesOf)(nil)
	_ assemble.Pacer    = (*bytesOf)(nil)
	_ assemble.Rereader = (*bytesOf)(nil)
	_ assemble.Cloner   = (*bytesOf)(nil)
)

// bytesOf is a claimed device or file as assemble sees it.
type bytesOf struct {
	*blockdev.Target

	mu     sync.Mutex         // guards medium
	medium *blockdev.ReadBack // past the page cache; nil until it is needed
}

// ReadBack implements assemble.Rereader.
func (b *bytesOf) ReadBack(p []byte, off int64) (int, error) {
	medium, err := b.openMedium()
	if err != nil {
		return 0, err
	}
	return medium.ReadAt(p, off)
}

func (b *bytesOf) openMedium() (_ *blockdev.ReadBack, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.medium == nil {
		b.medium, err = b.File.ReadBack()
	}
	return b.medium, err
}

// minClone is how many bytes are worth sharing rather than copying.
const minClone = 64 << 10

// Clone implements assemble.Cloner, for seeds that are files.
func (b *bytesOf) Clone(from io.ReaderAt, at, off, n int64) (lo, hi int64) {
	const block = 4096
	src, ok := from.(*blockdev.File)
	lo, hi = (off+block-1)/block*block, (off+n)/block*block
	if !ok || (at-off)%block != 0 || hi-lo < minClone {
		return 0, 0
	}
	if _, err := b.CloneFrom(src, at+lo-off, lo, hi-lo); err != nil {
		return 0, 0 // it is copied instead
	}
	return lo, hi
}
