package netlab

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Units of Link.Rate.
const (
	Kbit = 1000
	Mbit = 1000 * Kbit
	Gbit = 1000 * Mbit
)

// Link is the latency and the rate of a link.
type Link struct {
	RTT  time.Duration // round-trip time of an idle link, half of it in each direction
	Rate int64         // bits per second in each direction, shared by all connections; 0 means no limit
}

const (
	// turn is the time for which a connection has the link for itself while others wait. Longer turns cost less CPU
	// time and are less fair.
	turn = 500 * time.Microsecond
	// A part has at least smallest bytes, about an Ethernet frame, and at most largest.
	smallest, largest = 1460, 64 << 10
	// lead is how early the link gets a part, so that a late timer does not leave it idle.
	lead = 2 * time.Millisecond
	// A delay of the proxy itself, up to lateness, does not slow the link down.
	lateness = 20 * time.Millisecond
	// tick is the resolution of timers.
	tick = time.Millisecond
)

// quantum returns the number of bytes that are sent in one turn.
func (l Link) quantum() int {
	if l.Rate == 0 {
		return largest
	}
	return int(min(max(l.Rate/8*int64(turn)/int64(time.Second), smallest), largest))
}

// transferTime returns the time that n bytes take at the link's rate.
func (l Link) transferTime(n int) time.Duration {
	if l.Rate == 0 {
		return 0
	}
	return time.Duration(int64(n) * 8 * int64(time.Second) / l.Rate)
}

// part is a unit of transfer: bytes of a flow, or its end.
type part struct {
	flow *flow
	data []byte // nil at the end
	end  ending
	at   time.Time // of the arrival
}

// direction is one direction of a link. Parts leave one after the other at its rate, and arrive half an RTT later.
type direction struct {
	carried atomic.Int64  // bytes
	changed chan struct{} // holds a token when run has to look again

	mu       sync.Mutex // guards the fields below
	link     Link
	free     time.Time // when the last part has left
	underWay []part    // in the order of their arrival
	restored chan struct{}
}

func newDirection(l Link) *direction {
	restored := make(chan struct{})
	close(restored)
	return &direction{link: l, changed: make(chan struct{}, 1), restored: restored}
}

func (d *direction) setLink(l Link) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.link = l
}

func (d *direction) getLink() Link {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.link
}

// cut stops all parts in flight and later ones.
func (d *direction) cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.isUp() {
		d.restored = make(chan struct{})
	}
}

func (d *direction) restore() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.isUp() {
		close(d.restored)
		d.wake()
	}
}

// isUp requires the lock.
func (d *direction) isUp() bool {
	select {
	case <-d.restored:
		return true
	default:
		return false
	}
}

func (d *direction) wake() {
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

// awaitUp blocks while the link is cut.
func (d *direction) awaitUp(ctx context.Context) error {
	d.mu.Lock()
	restored := d.restored
	d.mu.Unlock()
	select {
	case <-restored:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// send sends a part, and returns the time at which it will have left. A part that was waiting for its turn leaves
// directly after the one before it, even if the proxy is late.
func (d *direction) send(p part, wasWaiting bool) (left time.Time) {
	d.carried.Add(int64(len(p.data)))
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	earliest := now
	if wasWaiting {
		earliest = now.Add(-lateness)
	}
	d.free = later(d.free, earliest).Add(d.link.transferTime(len(p.data)))
	p.at = later(d.free, now).Add(d.link.RTT / 2)
	if n := len(d.underWay); n > 0 {
		p.at = later(p.at, d.underWay[n-1].at) // parts keep their order when the RTT is reduced
	} else {
		d.wake()
	}
	d.underWay = append(d.underWay, p)
	return d.free
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// run delivers arriving parts until the context ends.
func (d *direction) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if wait, any := d.deliverDue(time.Now()); any {
			timer.Reset(wait)
		}
		select {
		case <-timer.C:
		case <-d.changed:
		case <-ctx.Done():
			return
		}
	}
}

// deliverDue delivers the parts that are due. It returns the time until the next arrival, if there is one.
func (d *direction) deliverDue(now time.Time) (wait time.Duration, any bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.isUp() {
		return 0, false
	}
	n := 0
	for ; n < len(d.underWay); n++ {
		p := d.underWay[n]
		// Timers are late by half a tick on average, so parts may be delivered that much early.
		if wait := p.at.Sub(now) - tick/2; wait > 0 {
			d.underWay = append(d.underWay[:0], d.underWay[n:]...)
			return wait, true
		}
		p.flow.arrived <- p // does not block: see window
	}
	clear(d.underWay)
	d.underWay = d.underWay[:0]
	return 0, false
}
