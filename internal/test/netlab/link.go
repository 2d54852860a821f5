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

// Link says how long bytes are under way, and how many may be.
type Link struct {
	RTT  time.Duration // a round trip of an idle link, half of it each way
	Rate int64         // bits a second each way, shared by all connections; 0 is no limit
}

const (
	// turn is how long a connection has the link for itself while others want it too. Longer turns cost less CPU
	// time and are less fair.
	turn = 500 * time.Microsecond
	// A part of at least smallest bytes is carried at once, about an Ethernet frame, and of at most largest.
	smallest, largest = 1460, 64 << 10
	// lead is how much the link is handed before it can send it, so that a late timer does not leave it idle.
	lead = 2 * time.Millisecond
	// lateness of the proxy itself, up to this much, does not slow the link down.
	lateness = 20 * time.Millisecond
	// tick is how exact timers are.
	tick = time.Millisecond
)

// quantum is how many bytes are carried in one turn.
func (l Link) quantum() int {
	if l.Rate == 0 {
		return largest
	}
	return int(min(max(l.Rate/8*int64(turn)/int64(time.Second), smallest), largest))
}

// takes is how long the link is busy with n bytes.
func (l Link) takes(n int) time.Duration {
	if l.Rate == 0 {
		return 0
	}
	return time.Duration(int64(n) * 8 * int64(time.Second) / l.Rate)
}

// part is what is carried at once: bytes of a flow, or its end.
type part struct {
	flow *flow
	data []byte // nil at the end
	end  ending
	at   time.Time // when it arrives
}

// direction is one way of a link: parts leave one behind the other at its rate, and arrive half a round trip later.
type direction struct {
	carried atomic.Int64  // bytes
	changed chan struct{} // holds a token when there is something new to wait for

	mu       sync.Mutex // guards what follows
	link     Link
	free     time.Time // when all that was handed over has left
	underWay []part    // in the order in which they arrive
	restored chan struct{}
}

func newDirection(l Link) *direction {
	restored := make(chan struct{})
	close(restored)
	return &direction{link: l, changed: make(chan struct{}, 1), restored: restored}
}

func (d *direction) set(l Link) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.link = l
}

func (d *direction) get() Link {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.link
}

// cut keeps all that is under way, or would be, where it is.
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

// isUp is called with the lock held.
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

// awaitUp returns when the link is not cut.
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

// send hands a part over, and returns when it will have left. A part that was waiting for its turn leaves right
// behind the one before it, even if the proxy is late to say so.
func (d *direction) send(p part, wasWaiting bool) (left time.Time) {
	d.carried.Add(int64(len(p.data)))
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	earliest := now
	if wasWaiting {
		earliest = now.Add(-lateness)
	}
	d.free = later(d.free, earliest).Add(d.link.takes(len(p.data)))
	p.at = later(d.free, now).Add(d.link.RTT / 2)
	if n := len(d.underWay); n > 0 {
		p.at = later(p.at, d.underWay[n-1].at) // nothing is overtaken when the round trip gets shorter
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

// run hands over what arrives, until the context ends.
func (d *direction) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if wait, any := d.arrive(time.Now()); any {
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

// arrive hands over what is due, and says how long to wait for what comes next, if anything does.
func (d *direction) arrive(now time.Time) (wait time.Duration, any bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.isUp() {
		return 0, false
	}
	n := 0
	for ; n < len(d.underWay); n++ {
		p := d.underWay[n]
		// A timer is late by half a tick on average: so much too early now makes up for it.
		if wait := p.at.Sub(now) - tick/2; wait > 0 {
			d.underWay = append(d.underWay[:0], d.underWay[n:]...)
			return wait, true
		}
		p.flow.arrived <- p // has room: see window
	}
	clear(d.underWay)
	d.underWay = d.underWay[:0]
	return 0, false
}
