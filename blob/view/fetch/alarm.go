package fetch

import "time"

// alarm is a timer that rings at the earliest of the times that it was set to. Not safe for concurrent use.
type alarm struct {
	ring  func() // must clear the alarm
	timer *time.Timer
	at    time.Time // zero: it is not set
}

// set has the alarm ring at a time, if it is not set to an earlier one. The zero time sets nothing.
func (a *alarm) set(at time.Time) {
	if at.IsZero() || !a.at.IsZero() && !at.Before(a.at) {
		return
	}
	a.clear()
	a.at = at
	a.timer = time.AfterFunc(time.Until(at), a.ring)
}

func (a *alarm) clear() {
	if a.timer != nil {
		a.timer.Stop()
	}
	a.at = time.Time{}
}
