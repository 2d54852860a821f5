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

// Link models the network path to one store. It measures the latency of answers and the bytes a
// second. From these it derives the in-flight limit, when an answer is late, and how many bytes may
// be prefetched. Waiting requests are let in in order. Safe for concurrent use.
type Link struct {
	most int // requests that are ever under way at once

	mu      sync.Mutex // guards the fields below
	model   model
	answers answers
	inside  int             // requests under way
	waiting []chan struct{} // the queue of waiters, in order; closed to let one in
}

// NewLink returns a Link that adapts its in-flight limit, up to most, to the requests that fill the
// link. These are few on a slow link, where more would only queue behind each other, and many on a
// fast one of high latency.
func NewLink(most int) *Link { return &Link{most: most, model: newModel(most)} }

// NewFixedLink returns a Link whose in-flight limit is always n.
func NewFixedLink(n int) *Link {
	return &Link{most: n, model: model{limit: n, most: n, fixed: true}}
}

// Most returns the largest in-flight limit that the link may choose.
func (l *Link) Most() int { return l.most }

// Limit returns the present in-flight limit.
func (l *Link) Limit() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.model.limit
}

// Product returns the bandwidth-delay product in bytes: the rate times the latency of an answer.
func (l *Link) Product() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.model.product()
}

// Budget returns how many bytes of prefetch may be under way, so that they delay a reader's request
// by at most delay.
func (l *Link) Budget(delay time.Duration) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.model.budget(delay)
}

// enter blocks until a request is let in. The caller must call leave with the number of wanted
// bytes and the outcome.
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

// takePlace takes a free place and returns nil, or returns a place in the queue.
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

// giveUp leaves the queue, or passes the turn on if it has just come.
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

// admit lets in waiters while there is room. The caller holds mu.
func (l *Link) admit() {
	for len(l.waiting) > 0 && l.inside < l.model.limit {
		close(l.waiting[0])
		l.waiting = l.waiting[1:]
		l.inside++
	}
}

// late returns the time after which an answer is late.
func (l *Link) late() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.answers.late()
}

// silent reports whether the store has not answered any request for as long as a late answer takes.
func (l *Link) silent() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Since(l.answers.last) >= l.answers.late()
}

// throttled reports whether err asks for fewer requests.
func throttled(err error) bool {
	busy, ok := errors.AsType[*store.UnavailableError](err)
	return ok && (busy.Throttled || busy.After > 0)
}

// model estimates a link. It measures in rounds: a round is as many answers as the limit at its
// start, and at least four. At first each round doubles the limit, as long as that raises the bytes
// a second. From then on the limit is twice the number of requests, plus two, that sustain the best
// rate of the last rounds at the unloaded latency. The surplus detects a link that became faster.
//
// This is the model of TCP's BBR (Cardwell et al. 2016) with answers instead of acknowledgements.
// Answers of object stores vary by themselves, so the minimal latency is that of the round with the
// least mean, with an allowance for chance.
//
// A round in which no request had to wait measures the demand and not the link. Such a round can
// only raise the rate, until the rate is rateFor old. Time without a request does not count.
type model struct {
	limit, most int
	fixed       bool // limit does not change
	limited     bool // a request waited in this round, or still does
	settled     bool // doubling has ended

	base    float64    // mean seconds of an unloaded answer; 0 is unknown
	least   float64    // seconds of the quickest answer; 0 is unknown
	size    float64    // mean size of an answer, bytes
	rates   [8]float64 // of the last rounds that count, bytes a second; newest first
	ratedAt time.Time  // when the newest was measured
	steady  int        // answers since the rate grew

	busySince time.Time     // start of the present busy period, or of the round if later
	busy      time.Duration // time with requests in this round before busySince
	left      int           // answers until the round ends
	bytes     int           // received in this round
	answers   int           // those with bytes
	took      float64       // sum of their latencies, seconds
	squares   float64       // sum of the squares of their latencies
	last      time.Time     // time of the last answer
}

const (
	firstLimit = 6
	leastLimit = 4
	// idleLimit is the idle time after which a link's estimates are reset, since the network may
	// have changed.
	idleLimit = 20 * time.Second

	firstBudget = 1 << 20          // bytes of prefetch in flight before the first measurement
	leastBudget = 128 << 10        // the least budget, so that a slow link is not left idle
	rateFor     = 10 * time.Second // how long a rate counts while no request has to wait
	steadyAfter = 64               // answers without a better rate, after which the link counts as full
)

func newModel(most int) model { return model{limit: min(firstLimit, most), most: most} }

// wake starts to measure when a request comes to an idle link.
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

// begin starts a round. It has at least leastLimit answers, since fewer do not give a latency.
func (m *model) begin(now time.Time) {
	m.busySince, m.busy, m.left, m.limited = now, 0, max(m.limit, leastLimit), false
	m.bytes, m.answers, m.took, m.squares = 0, 0, 0, 0
}

// done adds an answer of the given number of bytes to a request that was sent at begun.
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

// usual returns the mean latency of this round plus 1.5 times its standard error. Without that
// allowance a few quick answers would hold the limit down for good.
func (m *model) usual() float64 {
	n := float64(m.answers)
	mean := m.took / n
	return mean + 1.5*math.Sqrt(max(m.squares/n-mean*mean, 0)/n)
}

// learn adds the rate of a round, and adjusts the limit if the limit held the rate back.
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

// product is Link.Product. It uses the latency of the quickest answer, since a round's mean
// includes queueing.
func (m *model) product() int64 {
	if m.rate() == 0 {
		return firstBudget / 4
	}
	return int64(min(m.rate()*m.least, 1<<40))
}

// budget is Link.Budget: the bandwidth-delay product, plus the bytes that the link moves in delay.
// Until the link counts as full, budget is at least twice the product, to probe for a higher rate.
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

// answers tells late answers from usual ones, as TCP does for its retransmissions (RFC 6298). Its
// bounds are wider, since objects vary in size.
type answers struct {
	count           int
	mean, deviation time.Duration
	last            time.Time // when the last answer came
}

const (
	fewAnswers = 16
	leastLate  = 250 * time.Millisecond
	firstLate  = 2 * time.Second // while there are fewer than fewAnswers
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
