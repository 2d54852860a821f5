package assemble

import (
	"context"

	"cairn/seed"
)

// order is the order in which segments are put together: up, or down when that spares more of the target's
// own old content.
type order struct {
	plan    *seed.Plan
	lo, hi  int // the chunks that nobody has taken
	segment int64
	down    bool
	keep    bool // segments are written only when those before them have read what they need
	last    chan struct{}
}

// turn is a segment's place in an order that is to be kept.
type turn struct{ before, mine chan struct{} }

// newOrder is the order of the chunks from heads on, where own is the number of the seed that is the target
// itself, or negative.
func newOrder(p *seed.Plan, heads int, segment int64, own int) order {
	o := order{plan: p, lo: heads, hi: p.Index.Len(), segment: segment}
	if own >= 0 {
		o.keepTurns()
		o.down = movesUp(p, own)
	}
	return o
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

// take gives the next segment; lo = hi when there is none.
func (o *order) take() (lo, hi int, t *turn) {
	if o.lo == o.hi {
		return o.lo, o.lo, nil
	}
	if o.keep {
		t = &turn{before: o.last, mine: make(chan struct{})}
		o.last = t.mine
	}
	x := o.plan.Index
	if !o.down {
		lo = o.lo
		o.lo = min(x.Span(lo, o.segment), o.hi)
		return lo, o.lo, t
	}
	hi = o.hi
	o.hi--
	for end := x.At(hi - 1).End(); o.hi > o.lo && end-x.At(o.hi-1).Offset <= o.segment; {
		o.hi--
	}
	return o.hi, hi, t
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
