package fetch

import "time"

// alarm is a timer that rings at the earliest of the times that it was set to. Not safe for concurrent use.
type alarm struct {
	ring  func() // must call disarm
	timer *time.Timer
	at    time.Time // zero if the alarm is not set
}

// ringAt sets the alarm to a time, unless it is set to an earlier one. The zero time sets nothing.
func (a *alarm) ringAt(at time.Time) {
	if at.IsZero() || !a.at.IsZero() && !at.Before(a.at) {
		return
	}
	a.disarm()
	a.at = at
	a.timer = time.AfterFunc(time.Until(at), a.ring)
}

func (a *alarm) disarm() {
	if a.timer != nil {
		a.timer.Stop()
	}
	a.at = time.Time{}
}
