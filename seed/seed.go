// Package seed says what is already here: local bytes that may hold wanted chunks, and which of them
// supplies what. Planning is pure, and trusts seeds only as hints: what is read from one must be hashed
// before it is used. The package knows nothing of stores, and opens no files.
package seed

import (
	"io"

	"cairn/blob"
)

// Seed is local bytes that may hold wanted chunks. Index is what they are thought to hold, and may be
// stale or wrong; it must use the wanted image's digest algorithm to be of any use.
type Seed struct {
	Name  string
	Index *blob.Index
	Data  io.ReaderAt
}

// Kind is where a chunk of the wanted image comes from.
type Kind uint8

const (
	Fetch   Kind = iota // the store
	Zero                // nowhere: it is all zero
	Local               // a seed
	Copy                // the image itself: the same chunk comes earlier, and that one is fetched
	InPlace             // nowhere: the target holds it already; never in a Plan, only assembling finds that out
)

// Step says where one chunk comes from.
type Step struct {
	Kind Kind
	Seed uint16 // Local: number of the seed
	From uint32 // Local: number of the chunk in the seed; Copy: in the image
}

// MaxSeeds is how many seeds a plan can tell apart.
const MaxSeeds = 1 << 16

// Plan says for each chunk of an image where it comes from. It takes about 16 bytes a chunk, does not
// change, and may be shared.
type Plan struct {
	Index  *blob.Index
	Seeds  []Seed
	steps  []Step
	wanted *blob.Table
	tables []*blob.Table
}

// NewPlan plans for x with the seeds, of which an earlier one goes before a later one. Seeds beyond
// MaxSeeds are left out.
func NewPlan(x *blob.Index, seeds ...Seed) *Plan {
	p := &Plan{Index: x, Seeds: seeds[:min(len(seeds), MaxSeeds)], steps: make([]Step, x.Len()), wanted: blob.NewTable(x)}
	for _, s := range p.Seeds {
		p.tables = append(p.tables, blob.NewTable(s.Index))
	}
	var last Step
	for i, c := range x.All() {
		last = p.step(i, c, last)
		p.steps[i] = last
	}
	return p
}

func (p *Plan) step(i int, c blob.Chunk, last Step) Step {
	if p.Index.IsZero(i) {
		return Step{Kind: Zero}
	}
	if p.continues(c, last) {
		return Step{Local, last.Seed, last.From + 1}
	}
	for n := range p.Seeds {
		if from := p.find(n, c); from >= 0 {
			return Step{Local, uint16(n), uint32(from)}
		}
	}
	if first := p.First(i); first < i {
		return Step{Kind: Copy, From: uint32(first)}
	}
	return Step{Kind: Fetch}
}

// continues says whether c follows in the seed that the chunk before came from: a run is read at once.
func (p *Plan) continues(c blob.Chunk, last Step) bool {
	if last.Kind != Local {
		return false
	}
	x, next := p.Seeds[last.Seed].Index, int(last.From)+1
	return next < x.Len() && same(x.At(next), c)
}

func (p *Plan) find(seed int, c blob.Chunk) int {
	from := p.tables[seed].Find(c.Digest)
	if from >= 0 && same(p.Seeds[seed].Index.At(from), c) {
		return from
	}
	return -1
}

func same(a, b blob.Chunk) bool { return a.Digest == b.Digest && a.Size == b.Size }

// At is the step for chunk i.
func (p *Plan) At(i int) Step { return p.steps[i] }

// First is the number of the first chunk of the image that equals chunk i; i itself, if none comes earlier.
func (p *Plan) First(i int) int {
	c := p.Index.At(i)
	if first := p.wanted.Find(c.Digest); same(p.Index.At(first), c) {
		return first
	}
	return i // the index lies about one of them: no bytes have one digest and two sizes
}

// Place is where in a seed a chunk may be.
type Place struct {
	Seed   int
	Offset int64
}

// Place is where the Local step s reads.
func (p *Plan) Place(s Step) Place {
	return Place{int(s.Seed), p.Seeds[s.Seed].Index.At(int(s.From)).Offset}
}

// Places are all the seeds' places for chunk i, one a seed, in the seeds' order.
func (p *Plan) Places(i int) []Place {
	c := p.Index.At(i)
	var places []Place
	for n := range p.Seeds {
		if from := p.find(n, c); from >= 0 {
			places = append(places, Place{n, p.Seeds[n].Index.At(from).Offset})
		}
	}
	return places
}

// Totals are the image bytes by where they come from.
type Totals struct {
	Fetch, Zero, Copy int64
	Seeds             []int64 // by number of the seed
	Fetches           int     // chunks to fetch
}

// Totals sums the plan up.
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
		}
	}
	return t
}
