package store

import (
	"testing"
	"testing/synctest"
	"time"
)

// pretendStop makes the time since the process was last seen running longer, as a stop does.
func pretendStop(p *Pauses, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = p.seen.Add(-d)
}

// TestPauses: a stop is detected once, and an hour without one is none.
func TestPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p Pauses
		w, other := p.Watch(), p.Watch()
		time.Sleep(time.Hour)
		pretendStop(&p, 900*time.Millisecond) // a busy machine
		if w.WasStopped() {
			t.Error("a stop is detected without one")
		}
		pretendStop(&p, 70*time.Second)
		if !w.WasStopped() || w.WasStopped() || !other.WasStopped() {
			t.Error("a stop is not detected once by each watch")
		}
		pretendStop(&p, 70*time.Second)
		if got := w.stoppedTime(); got < 69*time.Second || got > 70*time.Second {
			t.Errorf("stopped for %v, want about 70 s", got)
		}
		w.End()
		other.End()
		time.Sleep(time.Hour) // unwatched
		if w = p.Watch(); w.WasStopped() {
			t.Error("time without a watch counts as a stop")
		}
		w.End()
		if none := (*Pauses)(nil).Watch(); none.WasStopped() {
			t.Error("no pauses detect a stop")
		}
	})
}

// TestStoppedAttempt: the time of a stop during a retry does not count against patience.
func TestStoppedAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p Pauses
		calls := 0
		err := Policy{Patience: 10 * time.Second, Pauses: &p}.Do(t.Context(), func() error {
			if calls++; calls == 3 {
				return nil
			}
			time.Sleep(time.Minute) // the first attempt may take any time
			if calls == 2 {
				pretendStop(&p, time.Minute)
			}
			return ErrUnavailable
		})
		if err != nil || calls != 3 {
			t.Errorf("Do = %v after %d calls", err, calls)
		}
	})
}
