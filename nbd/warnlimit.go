package nbd

import (
	"log/slog"
	"sync"
	"time"
)

// warnInterval is the minimum time between two warnings that clients can cause.
const warnInterval = time.Second

// limitedLogger limits the rate of warnings that any client can cause, so that they cannot fill the
// log. The zero value is ready to use.
type limitedLogger struct {
	mu         sync.Mutex // guards the fields below
	last       time.Time  // time of the last warning
	suppressed int        // warnings since then
}

// warn logs a warning, unless it has logged another one within warnInterval. The next warning has
// the number of suppressed ones.
func (l *limitedLogger) warn(log *slog.Logger, what string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); now.Sub(l.last) >= warnInterval {
		if l.suppressed > 0 {
			args = append(args, "suppressed", l.suppressed)
		}
		log.Warn(what, args...)
		l.last, l.suppressed = now, 0
		return
	}
	l.suppressed++
}
