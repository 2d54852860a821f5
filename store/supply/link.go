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
	maxLimit int // the largest in-flight limit

	mu        sync.Mutex // guards the fields below
	model     model
	latencies latencies
	waiters   []chan struct{} // in order; closed to let one in
}

// NewLink returns a Link that adapts its in-flight limit, up to most, to the requests that fill the
// link. These are few on a slow link, where more would only queue behind each other, and many on a
// fast one of high latency.
func NewLink(most int) *Link { return &Link{maxLimit: most, model: newModel(most)} }

// NewFixedLink returns a Link whose in-flight limit is always n.
func NewFixedLink(n int) *Link {
	return &Link{maxLimit: n, model: model{limit: n, maxLimit: n, fixed: true}}
}

// Most returns the largest in-flight limit that the link may choose.
func (l *Link) Most() int { return l.maxLimit }

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

// acquire blocks until a request is let in. The caller must call release with the number of wanted
// bytes and the outcome.
func (l *Link) acquire(ctx context.Context) (release func(bytes int, err error), err error) {
	if turn := l.acquireOrQueue(); turn != nil {
		select {
		case <-turn:
		case <-ctx.Done():
			l.leaveQueue(turn)
			return nil, ctx.Err()
		}
	}
	begun := time.Now()
	return func(bytes int, err error) { l.release(begun, bytes, err) }, nil
}

// Admit blocks until a request is let in, then calls send, which returns the number of wanted bytes that
// it received. It returns the error of send, or of ctx if that ends before.
func (l *Link) Admit(ctx context.Context, send func() (bytes int, err error)) error {
	release, err := l.acquire(ctx)
	if err != nil {
		return err
	}
	bytes, err := send()
	release(bytes, err)
	return err
}

// acquireOrQueue takes a free place and returns nil, or returns a place in the queue.
func (l *Link) acquireOrQueue() chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.model.startBusy(time.Now())
	if l.model.inFlight < l.model.limit {
		l.model.addInFlight(time.Now(), 1)
		return nil
	}
	l.model.limited = true
	turn := make(chan struct{})
	l.waiters = append(l.waiters, turn)
	return turn
}

// leaveQueue leaves the queue, or passes the turn on if it has just come.
func (l *Link) leaveQueue(turn chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.waiters, turn); i >= 0 {
		l.waiters = slices.Delete(l.waiters, i, i+1)
		return
	}
	l.model.addInFlight(time.Now(), -1)
	l.admitWaiters()
}

func (l *Link) release(begun time.Time, bytes int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.model.addInFlight(now, -1)
	l.model.limited = l.model.limited || len(l.waiters) > 0
	if err == nil {
		l.latencies.add(now, now.Sub(begun))
	} else {
		bytes = 0
	}
	if errors.Is(err, store.ErrNotFound) {
		l.latencies.lastAnswer = now
	}
	if errors.Is(err, errPaused) {
		l.model.restartRound(now)
	} else {
		l.model.addAnswer(now, begun, bytes, isThrottled(err))
	}
	if l.model.inFlight == 0 {
		l.model.stopBusy(now)
	}
	l.admitWaiters()
}

// admitWaiters lets in waiters while there is room. The caller holds mu.
func (l *Link) admitWaiters() {
	for len(l.waiters) > 0 && l.model.inFlight < l.model.limit {
		close(l.waiters[0])
		l.waiters = l.waiters[1:]
		l.model.addInFlight(time.Now(), 1)
	}
}

// lateAfter returns the time after which an answer is late.
func (l *Link) lateAfter() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.latencies.lateAfter()
}

// isSilent reports whether the store has not answered any request for as long as a late answer
// takes.
func (l *Link) isSilent() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Since(l.latencies.lastAnswer) >= l.latencies.lateAfter()
}

// isThrottled reports whether err asks for fewer requests.
func isThrottled(err error) bool {
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
// only raise the rate, until the rate is rateLifetime old. Time without a request does not count.
type model struct {
	limit, maxLimit int
	fixed           bool // limit does not change
	limited         bool // a request waited in this round, or still does
	settled         bool // doubling has ended

	baseLatency float64    // mean seconds of an unloaded answer; 0 is unknown
	minLatency  float64    // seconds of the quickest answer; 0 is unknown
	meanSize    float64    // mean size of an answer, bytes
	rates       [8]float64 // of the last rounds that count, bytes a second; newest first
	ratedAt     time.Time  // when the newest was measured
	sinceBest   int        // answers since the rate grew

	busySince   time.Time     // start of the present busy period, or of the round if later
	busy        time.Duration // time with requests in this round before busySince
	answersLeft int           // answers until the round ends
	bytes       int           // received in this round
	answers     int           // those with bytes
	latencySum  float64       // sum of their latencies, seconds
	squareSum   float64       // sum of the squares of their latencies
	ended       int           // all requests that ended in this round
	inFlight    int           // requests
	pending     float64       // seconds that all requests were in flight in this round, up to pendingAt
	pendingAt   time.Time
	last        time.Time // time of the last answer
}

const (
	firstLimit = 6
	minLimit   = 4
	// idleReset is the idle time after which a link's estimates are reset, since the network may
	// have changed.
	idleReset = 20 * time.Second

	firstBudget  = 1 << 20          // bytes of prefetch in flight before the first measurement
	minBudget    = 128 << 10        // keeps a slow link from being idle
	rateLifetime = 10 * time.Second // after which a rate expires, while no request has to wait
	fullAfter    = 64               // answers without a better rate, after which the link counts as full
)

func newModel(most int) model { return model{limit: min(firstLimit, most), maxLimit: most} }

// startBusy starts a busy period when a request arrives at an idle link.
func (m *model) startBusy(now time.Time) {
	if m.inFlight > 0 {
		return
	}
	if m.last.IsZero() || now.Sub(m.last) >= idleReset {
		if m.fixed {
			*m = model{limit: m.limit, maxLimit: m.maxLimit, fixed: true}
		} else {
			*m = newModel(m.maxLimit)
		}
		m.last = now
		m.startRound(now)
	}
	m.busySince = now
}

// stopBusy ends the busy period when no request is in flight.
func (m *model) stopBusy(now time.Time) { m.busy += now.Sub(m.busySince) }

// startRound starts a round. It has at least minLimit answers, since fewer do not give a latency.
func (m *model) startRound(now time.Time) {
	m.busySince, m.busy, m.answersLeft, m.limited = now, 0, max(m.limit, minLimit), false
	m.bytes, m.answers, m.latencySum, m.squareSum = 0, 0, 0, 0
	m.ended, m.pending, m.pendingAt = 0, 0, now
}

// addInFlight changes the number of requests in flight.
func (m *model) addInFlight(now time.Time, n int) {
	m.pending += float64(m.inFlight) * now.Sub(m.pendingAt).Seconds()
	m.pendingAt = now
	m.inFlight += n
}

// restartRound forgets the present round, in which the process was stopped.
func (m *model) restartRound(now time.Time) {
	m.last = now
	m.startRound(now)
}

// addAnswer adds an answer of the given number of bytes to a request that was sent at begun.
func (m *model) addAnswer(now, begun time.Time, bytes int, throttled bool) {
	m.last = now
	m.ended++
	if throttled && !m.fixed {
		m.settled = true
		m.limit = max(m.limit/2, 1)
		m.rates = [8]float64{}
		m.startRound(now)
		return
	}
	if bytes > 0 {
		if m.meanSize == 0 {
			m.meanSize = float64(bytes)
		}
		m.meanSize += (float64(bytes) - m.meanSize) / 32
		m.bytes += bytes
		m.answers++
		m.sinceBest++
		took := max(now.Sub(begun), time.Microsecond).Seconds()
		if m.minLatency == 0 || took < m.minLatency {
			m.minLatency = took
		}
		m.latencySum += took
		m.squareSum += took * took
	}
	if m.answersLeft--; m.answersLeft <= 0 {
		m.endRound(now)
	}
}

func (m *model) endRound(now time.Time) {
	if m.answers >= minLimit {
		if typical := m.typicalLatency(); m.baseLatency == 0 || typical < m.baseLatency {
			m.baseLatency = typical
		}
	}
	if busy := (m.busy + now.Sub(m.busySince)).Seconds(); m.baseLatency > 0 && busy > 0 {
		m.addRate(now, float64(m.bytes)/busy)
	}
	m.startRound(now)
}

// typicalLatency returns the mean latency of this round plus 1.5 times its standard error. Without
// that allowance a few quick answers would hold the limit down for good. When the limit has just grown,
// the first answers are the quick ones. So the mean is at least the time that all requests were in flight,
// divided by the number of those that ended.
func (m *model) typicalLatency() float64 {
	n := float64(m.answers)
	mean := m.latencySum / n
	deviation := math.Sqrt(max(m.squareSum/n-mean*mean, 0) / n)
	return max(mean, m.pending/float64(m.ended)) + 1.5*deviation
}

// addRate adds the rate of a round, and adjusts the limit if the limit held the rate back.
func (m *model) addRate(now time.Time, rate float64) {
	before := m.bestRate()
	if rate > before*1.1 {
		m.sinceBest = 0
	}
	switch {
	case m.limited || rate >= before:
	case now.Sub(m.ratedAt) < rateLifetime:
		return
	default:
		m.rates = [8]float64{}
	}
	copy(m.rates[1:], m.rates[:])
	m.rates[0], m.ratedAt = rate, now
	switch {
	case m.fixed || !m.limited:
	case !m.settled && rate > before*5/4:
		m.limit = min(2*m.limit, m.maxLimit)
	default:
		m.settled = true
		needed := m.bestRate() * m.baseLatency / m.meanSize
		m.limit = min(max(int(2*needed)+2, minLimit), m.maxLimit)
	}
}

// bestRate returns the best rate of the last rounds, in bytes a second.
func (m *model) bestRate() float64 { return slices.Max(m.rates[:]) }

// product is Link.Product. It uses the latency of the quickest answer, since a round's mean
// includes queueing.
func (m *model) product() int64 {
	if m.bestRate() == 0 {
		return firstBudget / 4
	}
	return int64(min(m.bestRate()*m.minLatency, 1<<40))
}

// budget is Link.Budget: the bandwidth-delay product, plus the bytes that the link moves in delay.
// Until the link counts as full, budget is at least twice the product, to probe for a higher rate.
func (m *model) budget(delay time.Duration) int64 {
	if m.bestRate() == 0 {
		return firstBudget
	}
	bytes := m.bestRate() * (m.minLatency + delay.Seconds())
	if m.sinceBest < fullAfter {
		bytes = max(2*m.bestRate()*m.minLatency, bytes, firstBudget)
	}
	return max(int64(min(bytes, 1<<40)), minBudget)
}

// latencies estimates when an answer is late, as TCP does for its retransmissions (RFC 6298). Its
// bounds are wider, since objects vary in size.
type latencies struct {
	count           int
	mean, deviation time.Duration
	lastAnswer      time.Time // when the last answer arrived
}

const (
	minAnswers = 16
	minLate    = 250 * time.Millisecond
	firstLate  = 2 * time.Second // while there are fewer than minAnswers
	maxLate    = 15 * time.Second
)

func (a *latencies) add(now time.Time, took time.Duration) {
	a.lastAnswer = now
	if a.count++; a.count == 1 {
		a.mean, a.deviation = took, took/2
		return
	}
	a.deviation += ((took - a.mean).Abs() - a.deviation) / 4
	a.mean += (took - a.mean) / 8
}

func (a *latencies) lateAfter() time.Duration {
	if a.count < minAnswers {
		return firstLate
	}
	return min(max(2*a.mean+8*a.deviation, minLate), maxLate)
}
