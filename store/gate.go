package store

import (
	"context"
	"math"
	"sync"
	"time"
)

// Gate limits how many requests one store has to answer at once. Safe for concurrent use; who waits is let
// in by turns.
type Gate struct {
	mu      sync.Mutex // guards what follows
	pace    pace
	inside  int
	waiting []chan struct{} // of those who wait, in their order; closed to let one in
}

// NewGate is a gate that finds out by itself how many requests fill the way to the store, and lets in no more
// than that: few on a slow link, where others would only wait for each other, many on a fast and long one,
// and never more than most.
func NewGate(most int) *Gate { return &Gate{pace: newPace(most)} }

// NewFixedGate is a gate that always lets in n requests.
func NewFixedGate(n int) *Gate { return &Gate{pace: pace{limit: n, most: n, fixed: true}} }

// Most is how many requests are ever let in at once.
func (g *Gate) Most() int { return g.pace.most }

// Limit is how many requests are let in at once at present.
func (g *Gate) Limit() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.pace.limit
}

// enter waits for a turn. The caller tells leave how many bytes came, and whether the store was overburdened.
func (g *Gate) enter(ctx context.Context) (leave func(bytes int, throttled bool), err error) {
	if turn := g.queue(); turn != nil {
		select {
		case <-turn:
		case <-ctx.Done():
			g.giveUp(turn)
			return nil, ctx.Err()
		}
	}
	begun := time.Now()
	return func(bytes int, throttled bool) { g.leave(begun, bytes, throttled) }, nil
}

// queue takes a place inside, or else one in the queue.
func (g *Gate) queue() chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pace.wake(time.Now(), g.inside)
	if g.inside < g.pace.limit {
		g.inside++
		return nil
	}
	g.pace.limited = true
	turn := make(chan struct{})
	g.waiting = append(g.waiting, turn)
	return turn
}

// giveUp leaves the queue; whose turn had just come hands it on.
func (g *Gate) giveUp(turn chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, w := range g.waiting {
		if w == turn {
			g.waiting = append(g.waiting[:i], g.waiting[i+1:]...)
			return
		}
	}
	g.inside--
	g.admit()
}

func (g *Gate) leave(begun time.Time, bytes int, throttled bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	g.pace.done(time.Now(), begun, bytes, throttled)
	g.admit()
}

// admit lets in whom there is room for. The caller holds mu.
func (g *Gate) admit() {
	for len(g.waiting) > 0 && g.inside < g.pace.limit {
		close(g.waiting[0])
		g.waiting = g.waiting[1:]
		g.inside++
	}
}

// pace decides how many requests should be under way. It measures in rounds: a round is as many answers as were let
// in when it began, and not fewer than four. In the beginning each round doubles the limit, as long as that brings
// more bytes a second; from then on the limit is what the best rate of the last rounds needs to be kept up over the
// time an answer takes when little else is asked, and as much again, so that a link that got faster is noticed. The
// model is that of TCP's BBR (Cardwell et al. 2016) with answers in the place of acknowledgements; but answers of
// object stores vary by themselves, so that the shortest time is the round's with the least mean, chance allowed
// for.
type pace struct {
	limit, most int
	fixed       bool
	limited     bool // somebody had to wait in this round, so that the limit was what held it back
	settled     bool // doubling has ended

	base  float64    // seconds that an answer takes; 0 when that is not known yet
	size  float64    // of an answer on average, bytes
	rates [8]float64 // of the last rounds that were limited, bytes a second; newest first

	begun   time.Time // of the round
	left    int       // answers until it ends
	bytes   int       // that came in it
	answers int       // with bytes
	took    float64   // all of those together, seconds
	squares float64   // and their squares
	last    time.Time // when the last answer came
}

const (
	firstPace = 6
	leastPace = 4
	// idlePace is how long nothing may be asked until what was learnt is forgotten: the network may be another.
	idlePace = 20 * time.Second
)

func newPace(most int) pace { return pace{limit: min(firstPace, most), most: most} }

// wake begins the first round, also after a time without requests.
func (p *pace) wake(now time.Time, inside int) {
	if p.fixed || inside > 0 || !p.last.IsZero() && now.Sub(p.last) < idlePace {
		return
	}
	*p = newPace(p.most)
	p.last = now
	p.begin(now)
}

// begin begins a round. One of fewer answers than tell a time would teach nothing.
func (p *pace) begin(now time.Time) {
	p.begun, p.left, p.bytes, p.answers, p.took, p.squares, p.limited = now, max(p.limit, leastPace), 0, 0, 0, 0, false
}

// done takes note of an answer of so many bytes to a request that was sent at begun.
func (p *pace) done(now, begun time.Time, bytes int, throttled bool) {
	if p.fixed {
		return
	}
	p.last = now
	if throttled {
		p.settled = true
		p.limit = max(p.limit/2, 1)
		p.rates = [8]float64{}
		p.begin(now)
		return
	}
	if bytes > 0 {
		if p.size == 0 {
			p.size = float64(bytes)
		}
		p.size += (float64(bytes) - p.size) / 32
		p.bytes += bytes
		p.answers++
		took := now.Sub(begun).Seconds()
		p.took += took
		p.squares += took * took
	}
	if p.left--; p.left <= 0 {
		p.endRound(now)
	}
}

func (p *pace) endRound(now time.Time) {
	if p.answers >= leastPace {
		if most := p.usual(); p.base == 0 || most < p.base {
			p.base = most
		}
	}
	if took := now.Sub(p.begun).Seconds(); p.limited && p.base > 0 && took > 0 {
		p.learn(float64(p.bytes) / took)
	}
	p.begin(now)
}

// usual is how long an answer took on average in this round, and half as much again as chance makes of that: a few
// answers that happened to be quick would otherwise hold the limit down for good.
func (p *pace) usual() float64 {
	n := float64(p.answers)
	mean := p.took / n
	return mean + 1.5*math.Sqrt(max(p.squares/n-mean*mean, 0)/n)
}

// learn chooses the limit after a round in which bytes came at a rate.
func (p *pace) learn(rate float64) {
	before := p.best()
	copy(p.rates[1:], p.rates[:])
	p.rates[0] = rate
	if !p.settled && rate > before*5/4 {
		p.limit = min(2*p.limit, p.most)
		return
	}
	p.settled = true
	needed := p.best() * p.base / p.size
	p.limit = min(max(int(2*needed)+2, leastPace), p.most)
}

func (p *pace) best() (rate float64) {
	for _, r := range p.rates {
		rate = max(rate, r)
	}
	return rate
}
