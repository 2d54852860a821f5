package deploy

import (
	"context"
	"errors"
	"fmt"

	"cairn/blob"
	"cairn/blob/assemble"
	"cairn/blob/delta"
	"cairn/blob/delta/apply"
	"cairn/blob/release"
	"cairn/internal/bitset"
	"cairn/seed"
	"cairn/store"
)

// Deltas is where a job finds deltas. The zero value finds none.
type Deltas struct {
	Dirs []store.Reader // the directories of deltas, beside the stores
	// Cached reports whether a cache has a chunk, which costs less than a delta. May be nil.
	Cached func(blob.Digest) bool
	// Keep returns a Getter that puts the chunks of another one into a cache. May be nil.
	Keep func(store.Getter) store.Getter
}

// planDelta is what a plan uses of a delta.
type planDelta struct {
	file      *apply.File
	selection *apply.Selection
	old       *seed.OldImage
}

// DeltaUse is what a plan uses of a delta.
type DeltaUse struct {
	Old      blob.Digest // of the old image's index
	Chunks   int         // that the delta makes
	Bytes    int64       // of the delta's file that are to be downloaded
	Requests int         // that download them
}

// DeltaUse returns what the plan uses of a delta, or nil if it uses none.
func (p *Plan) DeltaUse() *DeltaUse {
	d := p.delta
	if d == nil {
		return nil
	}
	return &DeltaUse{Old: d.file.Old, Chunks: d.selection.Len(), Bytes: d.selection.Bytes(), Requests: d.selection.Requests()}
}

const (
	// leastDelta is the least number of bytes to fetch for which a delta is looked for.
	leastDelta = 128 << 10
	// mostOfOld is the part of an old image's samples that the seeds must hold, in percent.
	mostOfOld = 75
	// leastShare is the least number of bytes to fetch, as a multiple of the bytes that a delta's table takes.
	leastShare = 4
)

// errNoBase reports that there are deltas, but none from an image like those of the seeds.
var errNoBase = errors.New("there is no delta from an image like those of the seeds")

// useDelta looks for a delta from an image that the seeds hold, and lets it make the chunks that it can
// make for less than they cost in the store. A delta is a hint: whatever is wrong with it, the plan stays
// as it is. Only the end of ctx is an error.
func (p *Plan) useDelta(ctx context.Context) error {
	if len(p.usableSeeds()) == 0 || p.Totals().Fetch < leastDelta {
		return nil
	}
	for _, dir := range p.options.Deltas.Dirs {
		found, err := p.tryDeltas(ctx, dir)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case found:
			return nil
		case err == nil || errors.Is(err, store.ErrNotFound):
		default:
			p.options.emitNote(NoDelta{dir.String(), err})
		}
	}
	return nil
}

// usableSeeds returns the seeds that the job does not overwrite.
func (p *Plan) usableSeeds() []seed.Seed {
	if p.own > 0 {
		return p.Seeds[:p.own-1] // it is the last one
	}
	return p.Seeds
}

// tryDeltas looks for a delta in a directory. It reports whether the plan uses one.
func (p *Plan) tryDeltas(ctx context.Context, dir store.Reader) (found bool, err error) {
	bases, err := release.ReadDeltaList(ctx, dir, p.Index)
	if err != nil || len(bases) == 0 {
		return false, err
	}
	base, held, err := chooseBase(bases, p.usableSeeds())
	if err != nil {
		return false, err
	}
	wanted, bytes, err := p.wantedOfDelta(ctx)
	if err != nil {
		return false, err
	}
	if costs := headCost(base, held, p.Index); bytes < max(leastDelta, leastShare*costs) {
		return false, nil
	}
	if held == nil {
		if held, err = release.ReadDeltaIndex(ctx, dir, p.Index, base); err != nil {
			return false, err
		}
	}
	file, err := apply.Open(ctx, dir, release.DeltaName(p.Index.Digest(), base.Index), p.Index, apply.Sizes{File: base.FileSize, Head: base.HeadSize})
	if err != nil {
		return false, err
	}
	old := seed.NewOldImage(held, p.usableSeeds()...)
	selection, err := p.selectOfDelta(file, held, old, wanted)
	if err != nil || selection.Len() == 0 {
		file.Close()
		return false, err
	}
	p.delta = &planDelta{file, selection, old}
	p.Plan = p.WithDelta(selection.Has)
	p.options.emitNote(DeltaFound{file.Old, selection.Len()})
	return true, nil
}

func (p *Plan) selectOfDelta(file *apply.File, held *blob.Index, old *seed.OldImage, wanted *bitset.Set) (*apply.Selection, error) {
	switch {
	case file.Old != held.Digest() || file.OldSize != held.Size():
		return nil, fmt.Errorf("%w: it is from another image than its name says", delta.ErrInvalid)
	case p.own > 0 && file.IsStream():
		return nil, errors.New("the server sends files only as a whole, and the image moves on the target")
	}
	return apply.Select(file, wanted.Has, func(r delta.Range) bool { return old.Holds(r.Offset, r.Size) }), nil
}

// wantedOfDelta returns the chunks that a delta is wanted for, and their bytes: those to fetch that
// neither the target nor the cache holds.
func (p *Plan) wantedOfDelta(ctx context.Context) (wanted *bitset.Set, bytes int64, err error) {
	held := bitset.New(p.Index.Len())
	if target := p.target.oldContent(); target != nil {
		if held, err = assemble.FindInPlace(ctx, p.Plan, target, p.options.Workers); err != nil {
			return nil, 0, err
		}
	}
	wanted = bitset.New(p.Index.Len())
	cached := p.options.Deltas.Cached
	for i, c := range p.Index.All() {
		if p.At(i).Kind == seed.Fetch && !held.Has(i) && (cached == nil || !cached(c.Digest)) {
			wanted.Add(i)
			bytes += c.Size
		}
	}
	return wanted, bytes, nil
}

// headCost returns how many bytes must be downloaded before the delta from base can be used. held is the
// old image's index, or nil if it must be downloaded too.
func headCost(base delta.Base, held, x *blob.Index) int64 {
	const row = 40 // bytes of an index for a chunk
	if held != nil {
		return base.HeadSize
	}
	return base.HeadSize + row*int64(x.Len())
}

// chooseBase returns the old image that the seeds hold, or hold most of. If a seed's index is that of
// the old image, it is returned too.
func chooseBase(bases []delta.Base, seeds []seed.Seed) (best delta.Base, held *blob.Index, err error) {
	digests := make([]blob.Digest, len(seeds))
	for i, s := range seeds {
		digests[i] = s.Index.Digest()
	}
	for _, b := range bases {
		for i, s := range seeds {
			if digests[i] == b.Index && (held == nil || b.FileSize < best.FileSize) {
				best, held = b, s.Index
			}
		}
	}
	if held != nil {
		return best, held, nil
	}
	most := 0
	for i, n := range countSamples(bases, seeds) {
		if n > most && 100*n >= mostOfOld*len(bases[i].Samples) {
			best, most = bases[i], n
		}
	}
	if most == 0 {
		return best, nil, errNoBase
	}
	for _, s := range seeds {
		if x := cutIndex(s, best.ImageSize); x != nil && x.Digest() == best.Index {
			return best, x, nil
		}
	}
	return best, nil, nil
}

// countSamples returns how many samples of each base are of chunks that a seed has.
func countSamples(bases []delta.Base, seeds []seed.Seed) []int {
	sampled := map[[8]byte]bool{} // whether a seed has it
	for _, b := range bases {
		for _, s := range b.Samples {
			sampled[s] = false
		}
	}
	for _, s := range seeds {
		for _, c := range s.Index.All() {
			if _, ok := sampled[[8]byte(c.Digest[:8])]; ok {
				sampled[[8]byte(c.Digest[:8])] = true
			}
		}
	}
	counts := make([]int, len(bases))
	for i, b := range bases {
		for _, s := range b.Samples {
			if sampled[s] {
				counts[i]++
			}
		}
	}
	return counts
}

// cutIndex returns the index of the first n bytes of a seed, as if they had been scanned alone, or nil.
// Only the chunk at the end differs from the seed's.
func cutIndex(s seed.Seed, n int64) *blob.Index {
	if n < 1 || n > s.Index.Size() {
		return nil
	}
	b, err := blob.NewBuilder(s.Index.Algorithm(), s.Index.Params())
	if err != nil {
		return nil
	}
	for _, c := range s.Index.All() {
		if c.End() > n {
			last := make([]byte, n-c.Offset)
			if k, _ := s.Data.ReadAt(last, c.Offset); k < len(last) {
				return nil
			}
			c.Size, c.Digest = int64(len(last)), s.Index.Algorithm().Sum(last)
		}
		if _, err := b.Add(c.Size, c.Digest); err != nil {
			return nil
		}
		if c.End() == n {
			break
		}
	}
	return b.Index()
}

// openDelta returns the Getter of the chunks that the plan makes from a delta, and a function that ends
// its requests.
func (p *Plan) openDelta(ctx context.Context) (from store.Getter, end func()) {
	if p.delta == nil {
		return nil, func() {}
	}
	source := apply.NewSource(ctx, p.Index, p.Find, p.delta.selection, p.delta.old)
	from = source
	if keep := p.options.Deltas.Keep; keep != nil {
		from = keep(source)
	}
	return from, source.Close
}
