// Package seed plans where each chunk of an image comes from: the store, or a seed on this machine.
// Planning is pure. A seed is only a hint: bytes from it must be hashed before they are used. The
// package knows nothing of stores, and opens no files.
package seed

import (
	"io"
	"slices"

	"cairn/blob"
)

// Seed is a run of local bytes that may hold wanted chunks. Index lists its presumed content, and may
// be stale or wrong. A seed is useless if its digest algorithm differs from the wanted image's.
type Seed struct {
	Name  string
	Index *blob.Index
	Data  io.ReaderAt
}

// Kind is the kind of source of a chunk.
type Kind uint8

const (
	Fetch   Kind = iota // the store
	Zero                // none: the chunk is all zero
	Local               // a seed
	Copy                // the image itself: an earlier chunk is equal, and is fetched
	Delta               // a delta, which makes it from bytes of an old image
	InPlace             // none: the target holds the chunk already; never in a Plan, since only assembling finds it out
)

// Step is the source of one chunk.
type Step struct {
	Kind Kind
	Seed uint16 // Local: number of the seed
	From uint32 // Local: number of the chunk in the seed; Copy: in the image
}

// MaxSeeds limits the seeds of a plan.
const MaxSeeds = 1 << 16

// Plan has the source of each chunk of an image. It takes about 16 bytes per chunk. It is immutable, so
// goroutines may share it.
type Plan struct {
	Index  *blob.Index
	Seeds  []Seed
	steps  []Step
	wanted *blob.Table
	tables []*blob.Table
}

// NewPlan returns the plan for x. An earlier seed is preferred to a later one. Seeds beyond MaxSeeds
// are ignored.
func NewPlan(x *blob.Index, seeds ...Seed) *Plan {
	p := &Plan{Index: x, Seeds: seeds[:min(len(seeds), MaxSeeds)], steps: make([]Step, x.Len()), wanted: blob.NewTable(x)}
	for _, s := range p.Seeds {
		p.tables = append(p.tables, blob.NewTable(s.Index))
	}
	var last Step
	for i, c := range x.All() {
		last = p.planStep(i, c, last)
		p.steps[i] = last
	}
	return p
}

func (p *Plan) planStep(i int, c blob.Chunk, last Step) Step {
	if p.Index.IsZero(i) {
		return Step{Kind: Zero}
	}
	if p.continuesRun(c, last) {
		return Step{Local, last.Seed, last.From + 1}
	}
	for n := range p.Seeds {
		if from := p.findInSeed(n, c); from >= 0 {
			return Step{Local, uint16(n), uint32(from)}
		}
	}
	if first := p.First(i); first < i {
		return Step{Kind: Copy, From: uint32(first)}
	}
	return Step{Kind: Fetch}
}

// continuesRun reports whether c follows the chunk before it in the same seed. Such a run is one read.
func (p *Plan) continuesRun(c blob.Chunk, last Step) bool {
	if last.Kind != Local {
		return false
	}
	x, next := p.Seeds[last.Seed].Index, int(last.From)+1
	return next < x.Len() && sameChunk(x.At(next), c)
}

func (p *Plan) findInSeed(seed int, c blob.Chunk) int {
	from := p.tables[seed].Find(c.Digest)
	if from >= 0 && sameChunk(p.Seeds[seed].Index.At(from), c) {
		return from
	}
	return -1
}

func sameChunk(a, b blob.Chunk) bool { return a.Digest == b.Digest && a.Size == b.Size }

// WithDelta returns the plan in which a delta makes the chunks that makes reports, instead of fetching
// them.
func (p *Plan) WithDelta(makes func(i int) bool) *Plan {
	q := *p
	q.steps = slices.Clone(p.steps)
	for i, s := range q.steps {
		if s.Kind == Fetch && makes(i) {
			q.steps[i].Kind = Delta
		}
	}
	return &q
}

// Find returns the number of the first chunk with this digest, or -1.
func (p *Plan) Find(d blob.Digest) int { return p.wanted.Find(d) }

// At returns the step of chunk i.
func (p *Plan) At(i int) Step { return p.steps[i] }

// First returns the number of the first chunk of the image that equals chunk i, which is i if no
// earlier one does.
func (p *Plan) First(i int) int {
	c := p.Index.At(i)
	if first := p.wanted.Find(c.Digest); sameChunk(p.Index.At(first), c) {
		return first
	}
	return i // the index is wrong about one of them: equal bytes have one size
}

// Place is the presumed place of a chunk in a seed.
type Place struct {
	Seed   int
	Offset int64
}

// Place returns the place of the Local step s.
func (p *Plan) Place(s Step) Place {
	return Place{int(s.Seed), p.Seeds[s.Seed].Index.At(int(s.From)).Offset}
}

// Places returns the place of chunk i in each seed that lists it, in the order of the seeds.
func (p *Plan) Places(i int) []Place {
	c := p.Index.At(i)
	var places []Place
	for n := range p.Seeds {
		if from := p.findInSeed(n, c); from >= 0 {
			places = append(places, Place{n, p.Seeds[n].Index.At(from).Offset})
		}
	}
	return places
}

// Totals are the image's bytes by source.
type Totals struct {
	Fetch, Zero, Copy, Delta int64
	Seeds                    []int64 // by number of the seed
	Fetches, Deltas          int     // chunks to fetch, and to make from a delta
}

// Totals returns the totals of the plan.
func (p *Plan) Totals() Totals {
	t := Totals{Seeds: make([]int64, len(p.Seeds))}
	for i, c := range p.Index.All() {
		switch s := p.steps[i]; s.Kind {
		case Fetch:
			t.Fetch += c.Size
			t.Fetches++
		case Zero:
			t.Zero += c.Size
		case Local:
			t.Seeds[s.Seed] += c.Size
		case Copy:
			t.Copy += c.Size
		case Delta:
			t.Delta += c.Size
			t.Deltas++
		}
	}
	return t
}
