package nbd

import (
	"net"
	"sync"
	"syscall"
	"time"
)

// writeSize is how many bytes go to the socket in one call. A client must take them within the write
// timeout.
const writeSize = 1 << 20

// sender writes replies to a client in the order in which they come. It has no goroutine of its own:
// whoever brings a reply while nobody writes becomes the writer, until nothing is left.
type sender struct {
	conn    net.Conn
	raw     syscall.RawConn // nil if conn cannot be written without waiting
	timeout time.Duration
	free    func(*buffer)
	failed  func(error) // called once, when conn cannot be written any more

	mu    sync.Mutex // guards what follows
	queue []*buffer
	busy  bool // somebody writes
	dead  bool // conn failed: what comes is dropped

	// What follows belongs to the one who writes.
	round   []*buffer // taken from the queue, in part written
	vectors net.Buffers
	attempt attempt
}

func newSender(conn net.Conn, timeout time.Duration) *sender {
	s := &sender{conn: conn, timeout: timeout}
	s.attempt.write = s.attempt.once
	if c, ok := conn.(syscall.Conn); ok {
		s.raw, _ = c.SyscallConn() // fails only on a closed connection, as all else will
	}
	return s
}

// send takes b over and has it written. It may wait for the client: what is made ready meanwhile would only be cold in
// the CPU's caches when its turn comes.
func (s *sender) send(b *buffer) {
	if !s.push(b) {
		return
	}
	if s.raw != nil && s.next() && s.tryRound() && !s.next() {
		return
	}
	s.drain()
}

// push queues b, and says whether the caller is now the one who writes.
func (s *sender) push(b *buffer) bool {
	s.mu.Lock()
	dead, busy := s.dead, s.busy
	if !dead {
		s.queue = append(s.queue, b)
		s.busy = true
	}
	s.mu.Unlock()
	if dead {
		s.free(b)
	}
	return !dead && !busy
}

// next makes sure that there is something in the round. If there is nothing to write, the caller is no
// longer the one who writes.
func (s *sender) next() bool {
	if len(s.round) > 0 {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n, size := 0, 0
	for n < len(s.queue) && (n == 0 || size+len(s.queue[n].p) <= writeSize) {
		size += len(s.queue[n].p)
		n++
	}
	s.round = append(s.round, s.queue[:n]...)
	s.queue = append(s.queue[:0], s.queue[n:]...)
	s.busy = n > 0
	return s.busy
}

func (s *sender) drain() {
	for s.next() {
		if err := s.writeRound(); err != nil {
			s.fail(err)
			return
		}
		s.release()
	}
}

func (s *sender) release() {
	for _, b := range s.round {
		s.free(b)
	}
	s.round = s.round[:0]
}

// writeRound writes the round in pieces of at most writeSize bytes.
func (s *sender) writeRound() error {
	defer s.conn.SetWriteDeadline(time.Time{}) // or it would strike tryRound, which sets none
	size := 0
	for _, b := range s.round {
		for p := b.p[b.sent:]; len(p) > 0; {
			n := min(len(p), writeSize-size)
			s.vectors = append(s.vectors, p[:n])
			p = p[n:]
			if size += n; size == writeSize {
				if err := s.writeVectors(); err != nil {
					return err
				}
				size = 0
			}
		}
	}
	return s.writeVectors()
}

func (s *sender) writeVectors() error {
	if err := s.conn.SetWriteDeadline(time.Now().Add(s.timeout)); err != nil {
		return err
	}
	vectors := s.vectors
	_, err := vectors.WriteTo(s.conn)
	clear(s.vectors)
	s.vectors = s.vectors[:0]
	return err
}

// fail drops all there is to write, and all that comes.
func (s *sender) fail(err error) {
	s.mu.Lock()
	s.round = append(s.round, s.queue...)
	s.queue = nil
	s.dead = true
	s.mu.Unlock()
	s.failed(err)
	s.release()
}

// tryRound writes as much of the round as the socket takes at once, and says whether that was all.
func (s *sender) tryRound() bool {
	for _, b := range s.round {
		s.attempt.p = b.p[b.sent:]
		if err := s.raw.Write(s.attempt.write); err != nil {
			return false
		}
		b.sent += s.attempt.n
		if b.sent < len(b.p) {
			return false
		}
	}
	s.release()
	return true
}

// attempt is one write that does not wait. Its function is made once, so that a reply costs no closure.
type attempt struct {
	p     []byte
	n     int
	write func(fd uintptr) bool
}

func (a *attempt) once(fd uintptr) bool {
	n, err := syscall.Write(int(fd), a.p)
	if err != nil {
		n = 0 // whoever writes next, and waits, sees the error again if it is one
	}
	a.n = n
	return true
}
