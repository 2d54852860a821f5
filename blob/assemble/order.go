package assemble

import (
	"context"

	"cairn/seed"
)

// order is the order in which segments are assembled: ascending, or descending if that preserves more
// of the target's own old content.
type order struct {
	plan       *seed.Plan
	segment    int64
	runs       []run // chunks that are not assigned yet, without those in local
	local      []run // long runs of chunks that need no store, not assigned yet
	descending bool
	inTurn     bool // a segment is written only after the earlier ones have read their sources
	lastTurn   chan struct{}
}

// run is the chunks [lo, hi).
type run struct{ lo, hi int }

// turn is the position of a segment in a sequence. previous is closed when the earlier segments have
// finished.
type turn struct{ previous, done chan struct{} }

// newOrder returns the order of the chunks [lo, hi). own is the number of the seed that is the target
// itself, or negative without one.
func newOrder(p *seed.Plan, lo, hi int, segment int64, own int) order {
	o := order{plan: p, segment: segment, runs: []run{{lo, hi}}}
	if own >= 0 {
		o.useTurns()
		o.descending = movesUp(p, own)
	}
	return o
}

// splitLocalRuns moves the runs that need no store and fill a segment to local. One goroutine assembles
// these first, while the others wait for the store.
func (o *order) splitLocalRuns() {
	all := o.runs[0]
	o.runs = nil
	for lo := all.lo; lo < all.hi; {
		needs := func(i int) bool {
			kind := o.plan.At(i).Kind
			return kind == seed.Fetch || kind == seed.Delta
		}
		r := run{lo, lo + 1}
		for r.hi < all.hi && needs(r.hi) == needs(lo) {
			r.hi++
		}
		last := len(o.runs) - 1
		switch size := o.plan.Index.At(r.hi-1).End() - o.plan.Index.At(lo).Offset; {
		case !needs(lo) && size >= o.segment:
			o.local = append(o.local, r)
		case last >= 0 && o.runs[last].hi == lo:
			o.runs[last].hi = r.hi
		default:
			o.runs = append(o.runs, r)
		}
		lo = r.hi
	}
}

// useTurns gives each segment a turn.
func (o *order) useTurns() {
	o.inTurn, o.lastTurn = true, make(chan struct{})
	close(o.lastTurn)
}

// movesUp reports whether most bytes from the seed own move to higher offsets. In ascending order these
// would be overwritten before they are read.
func movesUp(p *seed.Plan, own int) bool {
	var up int64
	for i, c := range p.Index.All() {
		step := p.At(i)
		if step.Kind != seed.Local || int(step.Seed) != own {
			continue
		}
		switch from := p.Place(step).Offset; {
		case from < c.Offset:
			up += c.Size
		case from > c.Offset:
			up -= c.Size
		}
	}
	return up > 0
}

// nextRun returns the chunks [lo, hi) of the next segment; lo = hi means that none is left. With
// localFirst it prefers the local runs.
func (o *order) nextRun(localFirst bool) (lo, hi int, t *turn) {
	from := &o.runs
	if len(o.runs) == 0 || localFirst && len(o.local) > 0 {
		from = &o.local
	}
	if len(*from) == 0 || (*from)[0].lo == (*from)[0].hi {
		return 0, 0, nil
	}
	if o.inTurn {
		t = &turn{previous: o.lastTurn, done: make(chan struct{})}
		o.lastTurn = t.done
	}
	r, x := &(*from)[0], o.plan.Index
	if o.descending {
		lo, hi = r.hi-1, r.hi
		for end := x.At(lo).End(); lo > r.lo && end-x.At(lo-1).Offset <= o.segment; {
			lo--
		}
		r.hi = lo
	} else {
		lo, hi = r.lo, min(x.Span(r.lo, o.segment), r.hi)
		r.lo = hi
	}
	if r.lo == r.hi {
		*from = (*from)[1:]
	}
	return lo, hi, t
}

// awaitPrevious blocks until all earlier turns have ended.
func (t *turn) awaitPrevious(ctx context.Context) error {
	select {
	case <-t.previous:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// startNext ends this turn, which lets the next one begin. It is called once.
func (t *turn) startNext() { close(t.done) }
