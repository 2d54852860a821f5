package view

import "time"

const (
	firstBudget = 1 << 20               // bytes in flight that nobody waits for, before anything was measured
	leastBudget = 128 << 10             // and at least, so that a slow link is not left idle
	queueDelay  = 50 * time.Millisecond // for which a link may be busy with what nobody waits for
	rateFor     = 10 * time.Second      // a rate is believed for so long
	leastTime   = 100 * time.Microsecond
)

// pace measures a store: how long an answer takes at least, and how many bytes come in a second at most. It
// looks at what was delivered while a fetch was under way, so that it sees the link and not the chunk. It has
// no clock of its own.
type pace struct {
	delivered int64         // bytes so far
	trip      time.Duration // the shortest fetch; 0 before the first
	rate      float64       // bytes a second, the best of late
	rateAt    time.Time     // when that was seen
	growing   int           // fetches since the rate last grew much, negative while it is to be explored
}

// departure is what is known when a fetch begins.
type departure struct {
	at        time.Time
	delivered int64
}

func (p *pace) depart(now time.Time) departure { return departure{now, p.delivered} }

// arrive takes note that n bytes came.
func (p *pace) arrive(d departure, now time.Time, n int64) {
	p.delivered += n
	took := max(now.Sub(d.at), leastTime)
	if p.trip == 0 || took < p.trip {
		p.trip = took
	}
	rate := float64(p.delivered-d.delivered) / took.Seconds()
	if rate > p.rate*1.1 {
		p.growing = 0
	}
	p.growing++
	if rate >= p.rate || now.Sub(p.rateAt) > rateFor {
		p.rate, p.rateAt = rate, now
	}
}

// settled is after how many fetches without a better rate the link is thought to be full.
const settled = 64

// budget is how many bytes may be in flight that nobody waits for: as much as the link holds, and what it
// moves in a short while besides, so that who does wait waits no longer than that. Until the link is full it is
// twice that, to find out.
func (p *pace) budget(delay time.Duration) int64 {
	if p.trip == 0 {
		return firstBudget
	}
	bytes := p.rate * (p.trip + delay).Seconds()
	if p.growing < settled {
		bytes = max(2*p.rate*p.trip.Seconds(), bytes, firstBudget)
	}
	return max(int64(min(bytes, 1<<40)), leastBudget)
}

// product is how many bytes the link holds: its rate times its trip.
func (p *pace) product() int64 {
	if p.trip == 0 {
		return firstBudget / 4
	}
	return int64(min(p.rate*p.trip.Seconds(), 1<<40))
}
