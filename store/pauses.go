package store

import (
	"sync"
	"time"
)

// Pauses measures for how long the process was stopped (SIGSTOP, a paused virtual machine) while it was watched. Timers
// go on meanwhile and servers close connections, which is no fault of a store. A stop is detected by a timer that is
// late. A busy machine makes timers late too, but by less than a second. The zero value is ready; a nil *Pauses
// detects nothing. Safe for concurrent use.
type Pauses struct {
	Now func() time.Time // the clock; nil is time.Now

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

// Watch begins to watch for stops, until the end of the watch.
func (p *Pauses) Watch() *PauseWatch {
	if p == nil {
		return &PauseWatch{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.watchers == 0 {
		p.seen = p.now()
		p.ticker = time.AfterFunc(tick, p.look)
	}
	p.watchers++
	p.lookLocked()
	return &PauseWatch{p, p.total}
}

// look looks for a stop, and runs again while there are watchers.
func (p *Pauses) look() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.watchers > 0 {
		p.lookLocked()
		p.ticker.Reset(tick)
	}
}

func (p *Pauses) lookLocked() {
	now := p.now()
	if late := now.Sub(p.seen) - tick; late >= minPause {
		p.total += late
	}
	p.seen = now
}

func (p *Pauses) now() time.Time {
	if p.Now != nil {
		return p.Now()
	}
	return time.Now()
}

// PauseWatch is a watch for stops.
type PauseWatch struct {
	pauses *Pauses
	before time.Duration // total at the last look
}

// WasStopped reports whether the process was stopped since the last call, or since the watch began.
func (w *PauseWatch) WasStopped() bool { return w.stoppedTime() > 0 }

// stoppedTime returns for how long the process was stopped since the last call, or since the watch began.
func (w *PauseWatch) stoppedTime() time.Duration {
	if w.pauses == nil {
		return 0
	}
	w.pauses.mu.Lock()
	defer w.pauses.mu.Unlock()
	w.pauses.lookLocked()
	stopped := w.pauses.total - w.before
	w.before = w.pauses.total
	return stopped
}

// End ends the watch.
func (w *PauseWatch) End() {
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
