package supply

import (
	"errors"
	"sync"
	"time"
)

// pauses measures for how long the process was stopped (SIGSTOP, a paused virtual machine) while it was watched. Timers
// go on meanwhile and servers close connections, which is no fault of a store. A stop is detected by a timer that is
// late. A busy machine makes timers late too, but by less than a second. The zero value is ready; a nil *pauses detects
// nothing. Safe for concurrent use.
type pauses struct {
	mu       sync.Mutex // guards the fields below
	watchers int
	ticker   *time.Timer // runs while there are watchers
	seen     time.Time   // when the process was last seen running
	total    time.Duration
}

const (
	tick     = 200 * time.Millisecond
	minPause = time.Second
)

// errPaused is the outcome of a request whose duration means nothing, because the process was stopped.
var errPaused = errors.New("the process was stopped")

// watch begins to watch for stops, until the end of the watch.
func (p *pauses) watch() *watch {
	if p == nil {
		return &watch{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.watchers == 0 {
		p.seen = time.Now()
		p.ticker = time.AfterFunc(tick, p.look)
	}
	p.watchers++
	p.lookLocked()
	return &watch{p, p.total}
}

// look looks for a stop, and runs again while there are watchers.
func (p *pauses) look() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.watchers > 0 {
		p.lookLocked()
		p.ticker.Reset(tick)
	}
}

func (p *pauses) lookLocked() {
	now := time.Now()
	if late := now.Sub(p.seen) - tick; late >= minPause {
		p.total += late
	}
	p.seen = now
}

// stoppedTime returns the total time of all stops.
func (p *pauses) stoppedTime() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.watchers > 0 {
		p.lookLocked()
	}
	return p.total
}

// watch is a watch for stops.
type watch struct {
	pauses *pauses
	before time.Duration // total at the last look
}

// wasStopped reports whether the process was stopped since the last call, or since the watch began.
func (w *watch) wasStopped() bool {
	if w.pauses == nil {
		return false
	}
	total := w.pauses.stoppedTime()
	defer func() { w.before = total }()
	return total > w.before
}

// end ends the watch.
func (w *watch) end() {
	if w.pauses == nil {
		return
	}
	w.pauses.mu.Lock()
	defer w.pauses.mu.Unlock()
	w.pauses.lookLocked()
	if w.pauses.watchers--; w.pauses.watchers == 0 {
		w.pauses.ticker.Stop()
	}
}
