package assemble

import (
	"context"

	"cairn/seed"
)

// order is the order in which segments are put together: up, or down when that spares more of the target's
// own old content.
type order struct {
	plan    *seed.Plan
	segment int64
	runs    []run // chunks that are not taken yet, without those in local
	local   []run // long runs of chunks that need no store, not taken yet
	down    bool
	keep    bool // segments are written only when those before them have read what they need
	last    chan struct{}
}

// run is the numbers of chunks from lo up to but not including hi.
type run struct{ lo, hi int }

// turn is a segment's place in an order that is to be kept.
type turn struct{ before, mine chan struct{} }

// newOrder returns the order of the chunks from lo up to but not including hi. own is the number of the seed that is the
// target itself; a negative one means that no seed is.
func newOrder(p *seed.Plan, lo, hi int, segment int64, own int) order {
	o := order{plan: p, segment: segment, runs: []run{{lo, hi}}}
	if own >= 0 {
		o.keepTurns()
		o.down = movesUp(p, own)
	}
	return o
}

// setLocalAside moves runs of at least a segment that need no store to local. One goroutine takes them first, while the
// others wait for the store.
func (o *order) setLocalAside() {
	all := o.runs[0]
	o.runs = nil
	for lo := all.lo; lo < all.hi; {
		needs := func(i int) bool { return o.plan.At(i).Kind == seed.Fetch }
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

// keepTurns gives each segment a turn.
func (o *order) keepTurns() {
	o.keep, o.last = true, make(chan struct{})
	close(o.last)
}

// movesUp says whether most bytes that come from the seed own go to higher offsets than they have there. They
// are overwritten before they are read unless the image is put together from its end.
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

// take returns the chunks of the next segment; lo = hi means that none are left. With localFirst it takes from the local
// runs as long as there are any.
func (o *order) take(localFirst bool) (lo, hi int, t *turn) {
	from := &o.runs
	if len(o.runs) == 0 || localFirst && len(o.local) > 0 {
		from = &o.local
	}
	if len(*from) == 0 || (*from)[0].lo == (*from)[0].hi {
		return 0, 0, nil
	}
	if o.keep {
		t = &turn{before: o.last, mine: make(chan struct{})}
		o.last = t.mine
	}
	r, x := &(*from)[0], o.plan.Index
	if o.down {
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

// pass says that a segment has read what it needs, and returns when those before it have too.
func (t *turn) pass(ctx context.Context) error {
	if t == nil {
		return nil
	}
	if err := t.wait(ctx); err != nil {
		return err
	}
	t.end()
	return nil
}

// wait returns when the turns before have ended.
func (t *turn) wait(ctx context.Context) error {
	select {
	case <-t.before:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// end begins the next turn. It is called once.
func (t *turn) end() { close(t.mine) }
