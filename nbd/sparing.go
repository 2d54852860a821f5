package nbd

import (
	"log/slog"
	"sync"
	"time"
)

// sparingly is how often at most strangers can have something written to the log.
const sparingly = time.Second

// sparing warns of what anybody may cause as often as they like, without filling the log. The zero value is ready.
type sparing struct {
	mu     sync.Mutex // guards what follows
	last   time.Time  // when it warned
	unsaid int        // since then
}

// warn logs a warning, unless there was one just now. The next one tells how many were left out.
func (s *sparing) warn(log *slog.Logger, what string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); now.Sub(s.last) >= sparingly {
		if s.unsaid > 0 {
			args = append(args, "left out before", s.unsaid)
		}
		log.Warn(what, args...)
		s.last, s.unsaid = now, 0
		return
	}
	s.unsaid++
}
