package deploy

import (
	"context"
	"errors"

	"cairn/blob"
	"cairn/blob/assemble"
	"cairn/blob/delta"
	"cairn/blob/delta/apply"
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
	dir       string
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

// DeltaSize returns the size of a chunk in the delta that the plan uses, or 0.
func (p *Plan) DeltaSize(chunk int) int64 {
	if p.delta == nil {
		return 0
	}
	return p.delta.selection.Size(chunk)
}

// useDelta looks for a delta from an image that the seeds hold, and lets it make the chunks that it can
// make for less than they cost in the store. A delta is a hint: whatever is wrong with it, the plan stays
// as it is. Only the end of ctx is an error.
func (p *Plan) useDelta(ctx context.Context) error {
	if len(p.usableSeeds()) == 0 || !apply.IsWorth(p.Totals().Fetch, 0) {
		return nil
	}
	for _, dir := range p.options.Deltas.Dirs {
		found, err := p.tryDeltas(ctx, dir)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case found:
			return nil
		case err == nil || apply.IsAbsent(err):
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
	var wanted *bitset.Set
	file, old, err := apply.Find(ctx, dir, p.Index, p.usableSeeds(), func(costs int64) (worth bool, err error) {
		var bytes int64
		wanted, bytes, err = p.wantedOfDelta(ctx)
		return apply.IsWorth(bytes, costs), err
	})
	if file == nil {
		return false, err
	}
	if p.own > 0 && file.IsStream() {
		file.Close()
		return false, errors.New("the server sends files only as a whole, and the image moves on the target")
	}
	selection := apply.Select(file, wanted.Has, func(r delta.Range) bool { return old.Holds(r.Offset, r.Size) })
	if selection.Len() == 0 {
		file.Close()
		return false, nil
	}
	p.delta = &planDelta{dir.String(), file, selection, old}
	p.Plan = p.WithDelta(selection.Has)
	return true, nil
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
	for i, c := range p.Index.Range(p.lo, p.hi) {
		if p.At(i).Kind == seed.Fetch && !held.Has(i) && (cached == nil || !cached(c.Digest)) {
			wanted.Add(i)
			bytes += c.Size
		}
	}
	return wanted, bytes, nil
}

// openDelta returns the Getter of the chunks that the plan makes from a delta, and a function that ends
// its requests, and reports whether it was left.
func (p *Plan) openDelta(ctx context.Context) (from store.Getter, end func()) {
	if p.delta == nil {
		return nil, func() {}
	}
	source := apply.NewSource(ctx, p.Index, p.Find, p.delta.selection, p.delta.old)
	from = source
	if keep := p.options.Deltas.Keep; keep != nil {
		from = keep(source)
	}
	return from, func() {
		source.Close()
		if err := source.Failure(); err != nil && ctx.Err() == nil {
			p.options.emitNote(DeltaLeft{p.delta.dir, err})
		}
	}
}
