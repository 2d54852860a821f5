package supply

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"time"

	"cairn/store"
)

// Link is the way to one store. It measures how long an answer takes and how many bytes come in a second; from that
// it decides how many requests are under way, when an answer is late, and how many bytes may be prefetched. Requests
// that have to wait are let in in their order. Safe for concurrent use.
type Link struct {
	most int // requests that are ever under way at once

	mu      sync.Mutex // guards what follows
	model   model
	answers answers
	inside  int             // requests under way
	waiting []chan struct{} // of those that wait, in their order; closed to let one in
}

// NewLink returns a link that finds out by itself how many requests fill it, and lets in no more than that: few on a
// slow link, where others would only wait for each other, many on a fast and long one, and never more than most.
func NewLink(most int) *Link { return &Link{most: most, model: newModel(most)} }

// NewFixedLink returns a link that always lets in n requests.
func NewFixedLink(n int) *Link {
	return &Link{most: n, model: model{limit: n, most: n, fixed: true}}
}

// Most returns how many requests are ever let in at once.
func (l *Link) Most() int { return l.most }

// Limit returns how many requests are let in at once at present.
func (l *Link) Limit() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.model.limit
}

// Product returns how many bytes the link holds: its rate times the time an answer takes.
func (l *Link) Product() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.model.product()
}

// Budget returns how many bytes may be under way that no reader waits for, so that a reader's request is held up for no
// longer than delay.
func (l *Link) Budget(delay time.Duration) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.model.budget(delay)
}

// enter blocks until a request is let in. The caller calls leave with the bytes that were wanted and the outcome.
func (l *Link) enter(ctx context.Context) (leave func(bytes int, err error), err error) {
	if turn := l.takePlace(); turn != nil {
		select {
		case <-turn:
		case <-ctx.Done():
			l.giveUp(turn)
			return nil, ctx.Err()
		}
	}
	begun := time.Now()
	return func(bytes int, err error) { l.leave(begun, bytes, err) }, nil
}

// takePlace takes a place inside, or else returns one in the queue.
func (l *Link) takePlace() chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.model.wake(time.Now(), l.inside)
	if l.inside < l.model.limit {
		l.inside++
		return nil
	}
	l.model.limited = true
	turn := make(chan struct{})
	l.waiting = append(l.waiting, turn)
	return turn
}

// giveUp leaves the queue, or hands the turn on if it has just come.
func (l *Link) giveUp(turn chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.waiting, turn); i >= 0 {
		l.waiting = slices.Delete(l.waiting, i, i+1)
		return
	}
	l.inside--
	l.admit()
}

func (l *Link) leave(begun time.Time, bytes int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.inside--
	l.model.limited = l.model.limited || len(l.waiting) > 0
	if err == nil {
		l.answers.add(now, now.Sub(begun))
	} else {
		bytes = 0
	}
	if errors.Is(err, store.ErrNotFound) {
		l.answers.last = now
	}
	l.model.done(now, begun, bytes, throttled(err))
	if l.inside == 0 {
		l.model.rest(now)
	}
	l.admit()
}

// admit lets in the requests that there is room for. The caller holds mu.
func (l *Link) admit() {
	for len(l.waiting) > 0 && l.inside < l.model.limit {
		close(l.waiting[0])
		l.waiting = l.waiting[1:]
		l.inside++
	}
}

// late returns how long an answer takes that is unusually late.
func (l *Link) late() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.answers.late()
}

// silent reports whether the store has not answered any request for an unusual time.
func (l *Link) silent() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Since(l.answers.last) >= l.answers.late()
}

// throttled reports whether a store asked for fewer requests.
func throttled(err error) bool {
	busy, ok := errors.AsType[*store.UnavailableError](err)
	return ok && (busy.Throttled || busy.After > 0)
}

// model estimates a link. It measures in rounds: a round is as many answers as were let in when it began, and not fewer
// than four. In the beginning each round doubles the limit, as long as that brings more bytes a second; from then on
// the limit is the number of requests that keep up the best rate of the last rounds over the time an answer takes when
// little else is asked, and as many again, so that a link that got faster is noticed. This is the model of TCP's BBR
// (Cardwell et al. 2016) with answers in the place of acknowledgements; but answers of object stores vary by
// themselves, so that the shortest time is that of the round with the least mean, chance allowed for.
//
// A round in which no request had to wait shows what was asked for, and not what the link can do: it can only raise the
// rate, until that is old. Time without a request counts for nothing.
type model struct {
	limit, most int
	fixed       bool // limit stays
	limited     bool // a request waited in this round, or still does
	settled     bool // doubling has ended

	base    float64    // seconds that an answer takes on average when little else is asked; 0 until that is known
	least   float64    // seconds that the quickest answer took; 0 until there is one
	size    float64    // of an answer on average, bytes
	rates   [8]float64 // of the last rounds that count, bytes a second; newest first
	ratedAt time.Time  // when the newest was measured
	steady  int        // answers since the rate grew

	busySince time.Time     // when the first of the requests under way began, or the round
	busy      time.Duration // of this round before that
	left      int           // answers until the round ends
	bytes     int           // received in it
	answers   int           // with bytes
	took      float64       // all of those together, seconds
	squares   float64       // and their squares
	last      time.Time     // of the last answer
}

const (
	firstLimit = 6
	leastLimit = 4
	// idleLimit is how long a link may be idle until its estimates are forgotten: the network may be another.
	idleLimit = 20 * time.Second

	firstBudget = 1 << 20          // bytes of prefetch under way before anything was measured
	leastBudget = 128 << 10        // and at least, so that a slow link is not left idle
	rateFor     = 10 * time.Second // how long a rate counts where no request has to wait
	steadyAfter = 64               // answers without a better rate, after which the link counts as full
)

func newModel(most int) model { return model{limit: min(firstLimit, most), most: most} }

// wake begins to measure when a request comes to an idle link.
func (m *model) wake(now time.Time, inside int) {
	if inside > 0 {
		return
	}
	if m.last.IsZero() || now.Sub(m.last) >= idleLimit {
		if m.fixed {
			*m = model{limit: m.limit, most: m.most, fixed: true}
		} else {
			*m = newModel(m.most)
		}
		m.last = now
		m.begin(now)
	}
	m.busySince = now
}

// rest ends the time in which requests are under way.
func (m *model) rest(now time.Time) { m.busy += now.Sub(m.busySince) }

// begin begins a round. One of fewer answers than tell a time would teach nothing.
func (m *model) begin(now time.Time) {
	m.busySince, m.busy, m.left, m.limited = now, 0, max(m.limit, leastLimit), false
	m.bytes, m.answers, m.took, m.squares = 0, 0, 0, 0
}

// done takes in the answer of so many bytes to a request that was sent at begun.
func (m *model) done(now, begun time.Time, bytes int, throttled bool) {
	m.last = now
	if throttled && !m.fixed {
		m.settled = true
		m.limit = max(m.limit/2, 1)
		m.rates = [8]float64{}
		m.begin(now)
		return
	}
	if bytes > 0 {
		if m.size == 0 {
			m.size = float64(bytes)
		}
		m.size += (float64(bytes) - m.size) / 32
		m.bytes += bytes
		m.answers++
		m.steady++
		took := max(now.Sub(begun), time.Microsecond).Seconds()
		if m.least == 0 || took < m.least {
			m.least = took
		}
		m.took += took
		m.squares += took * took
	}
	if m.left--; m.left <= 0 {
		m.endRound(now)
	}
}

func (m *model) endRound(now time.Time) {
	if m.answers >= leastLimit {
		if usual := m.usual(); m.base == 0 || usual < m.base {
			m.base = usual
		}
	}
	if busy := (m.busy + now.Sub(m.busySince)).Seconds(); m.base > 0 && busy > 0 {
		m.learn(now, float64(m.bytes)/busy)
	}
	m.begin(now)
}

// usual returns how long an answer took on average in this round, and half as much again as chance makes of that: a few
// answers that happened to be quick would otherwise hold the limit down for good.
func (m *model) usual() float64 {
	n := float64(m.answers)
	mean := m.took / n
	return mean + 1.5*math.Sqrt(max(m.squares/n-mean*mean, 0)/n)
}

// learn takes in the rate of a round, and chooses the limit if that was what held the rate back.
func (m *model) learn(now time.Time, rate float64) {
	before := m.rate()
	if rate > before*1.1 {
		m.steady = 0
	}
	switch {
	case m.limited || rate >= before:
	case now.Sub(m.ratedAt) < rateFor:
		return
	default:
		m.rates = [8]float64{}
	}
	copy(m.rates[1:], m.rates[:])
	m.rates[0], m.ratedAt = rate, now
	switch {
	case m.fixed || !m.limited:
	case !m.settled && rate > before*5/4:
		m.limit = min(2*m.limit, m.most)
	default:
		m.settled = true
		needed := m.rate() * m.base / m.size
		m.limit = min(max(int(2*needed)+2, leastLimit), m.most)
	}
}

// rate returns the best rate of the last rounds, in bytes a second.
func (m *model) rate() float64 { return slices.Max(m.rates[:]) }

// product is Link.Product. The time is the quickest answer's: a round's mean has what its requests waited for each other.
func (m *model) product() int64 {
	if m.rate() == 0 {
		return firstBudget / 4
	}
	return int64(min(m.rate()*m.least, 1<<40))
}

// budget is Link.Budget: as many bytes as the link holds, and those that it moves in delay besides. Until the link is
// full it is twice what the link holds, to find out.
func (m *model) budget(delay time.Duration) int64 {
	if m.rate() == 0 {
		return firstBudget
	}
	bytes := m.rate() * (m.least + delay.Seconds())
	if m.steady < steadyAfter {
		bytes = max(2*m.rate()*m.least, bytes, firstBudget)
	}
	return max(int64(min(bytes, 1<<40)), leastBudget)
}

// answers tells usual times from unusual ones, as TCP does for its retransmissions (RFC 6298), with more
// room: objects are of many sizes.
type answers struct {
	count           int
	mean, deviation time.Duration
	last            time.Time // when the last one came
}

const (
	fewAnswers = 16
	leastLate  = 250 * time.Millisecond
	firstLate  = 2 * time.Second // as long as there are few answers
	mostLate   = 15 * time.Second
)

func (a *answers) add(now time.Time, took time.Duration) {
	a.last = now
	if a.count++; a.count == 1 {
		a.mean, a.deviation = took, took/2
		return
	}
	a.deviation += ((took - a.mean).Abs() - a.deviation) / 4
	a.mean += (took - a.mean) / 8
}

func (a *answers) late() time.Duration {
	if a.count < fewAnswers {
		return firstLate
	}
	return min(max(2*a.mean+8*a.deviation, leastLate), mostLate)
}
