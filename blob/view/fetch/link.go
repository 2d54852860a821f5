package fetch

import (
	"sync"
	"time"
)

// Link is what is known of the link to a store. Safe for concurrent use.
type Link interface {
	// Product returns how many bytes the link holds: its rate times its round trip.
	Product() int64
	// Budget returns how many bytes of prefetches may be in flight, so that they delay a demand fetch by so much at most.
	Budget(delay time.Duration) int64
}

const (
	firstBudget = 1 << 20          // before anything was measured
	leastBudget = 128 << 10        // so that a slow link is not left idle
	rateFor     = 10 * time.Second // a rate counts for so long
	leastTime   = 100 * time.Microsecond
	settled     = 64 // fetches without a better rate, after which the link counts as full
)

// pace is a Link that measures the shortest time of a fetch, and the most bytes that came in a second. It looks at all
// that came while a fetch was under way, so that it sees the link and not the chunk. The zero value is ready.
type pace struct {
	mu        sync.Mutex    // guards what follows
	delivered int64         // bytes so far
	trip      time.Duration // the shortest fetch; 0 before the first
	rate      float64       // bytes a second, the best of late
	rateAt    time.Time     // when that was seen
	steady    int           // fetches since the rate grew
}

// departure is what is known when a fetch begins.
type departure struct {
	at        time.Time
	delivered int64
}

func (p *pace) depart(now time.Time) departure {
	p.mu.Lock()
	defer p.mu.Unlock()
	return departure{now, p.delivered}
}

// arrive notes that n bytes came.
func (p *pace) arrive(d departure, now time.Time, n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delivered += n
	took := max(now.Sub(d.at), leastTime)
	if p.trip == 0 || took < p.trip {
		p.trip = took
	}
	rate := float64(p.delivered-d.delivered) / took.Seconds()
	if rate > p.rate*1.1 {
		p.steady = 0
	}
	p.steady++
	if rate >= p.rate || now.Sub(p.rateAt) > rateFor {
		p.rate, p.rateAt = rate, now
	}
}

// Budget implements Link: what the link holds, and what it moves in the delay besides. Until the link is full it is
// twice what the link holds, to find out.
func (p *pace) Budget(delay time.Duration) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.trip == 0 {
		return firstBudget
	}
	bytes := p.rate * (p.trip + delay).Seconds()
	if p.steady < settled {
		bytes = max(2*p.rate*p.trip.Seconds(), bytes, firstBudget)
	}
	return max(int64(min(bytes, 1<<40)), leastBudget)
}

// Product implements Link.
func (p *pace) Product() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.trip == 0 {
		return firstBudget / 4
	}
	return int64(min(p.rate*p.trip.Seconds(), 1<<40))
}
