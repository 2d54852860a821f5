package nbd

import (
	"net"
	"sync"
	"syscall"
	"time"
)

// writeSize is the number of bytes in one write to the socket, at most. The client must receive
// them within the write timeout.
const writeSize = 1 << 20

// sender writes replies to a client in the order of sendBuffer calls. It has no goroutine of its
// own: the caller of sendBuffer writes, including the replies that other callers queue meanwhile.
type sender struct {
	conn    net.Conn
	raw     syscall.RawConn // for writes that do not block; nil if conn has none
	timeout time.Duration
	free    func(*buffer)
	onError func(error) // called once, when writing has failed

	mu      sync.Mutex // guards the fields below
	queue   []*buffer
	writing bool // a goroutine writes
	broken  bool // writing has failed: further replies are dropped

	// The writing goroutine owns the fields below.
	round   []*buffer // taken from the queue, partly written
	vectors net.Buffers
	attempt nonblockingWrite
}

func newSender(conn net.Conn, timeout time.Duration) *sender {
	s := &sender{conn: conn, timeout: timeout}
	s.attempt.write = s.attempt.writeOnce
	if c, ok := conn.(syscall.Conn); ok {
		s.raw, _ = c.SyscallConn() // fails only for a closed connection, on which the next write fails too
	}
	return s
}

// sendBuffer takes ownership of b, and queues or writes it. It may block until the client reads.
// Replies that are prepared meanwhile would only drop out of the CPU's caches before they are
// written.
func (s *sender) sendBuffer(b *buffer) {
	if !s.enqueue(b) {
		return
	}
	if s.raw != nil && s.nextRound() && s.tryWriteRound() && !s.nextRound() {
		return
	}
	for s.nextRound() {
		if err := s.writeRound(); err != nil {
			s.dropAll(err)
			return
		}
		s.freeRound()
	}
}

// enqueue queues b. It reports whether the caller must write.
func (s *sender) enqueue(b *buffer) bool {
	s.mu.Lock()
	broken, writing := s.broken, s.writing
	if !broken {
		s.queue = append(s.queue, b)
		s.writing = true
	}
	s.mu.Unlock()
	if broken {
		s.free(b)
	}
	return !broken && !writing
}

// nextRound fills the round from the queue, unless it has buffers already. It reports false if both
// are empty; then the caller must not write any more.
func (s *sender) nextRound() bool {
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
	s.writing = n > 0
	return s.writing
}

func (s *sender) freeRound() {
	for _, b := range s.round {
		s.free(b)
	}
	s.round = s.round[:0]
}

// writeRound writes the round in parts of at most writeSize bytes.
func (s *sender) writeRound() error {
	defer s.conn.SetWriteDeadline(time.Time{}) // tryWriteRound sets no deadline, and this one would apply to it
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

// dropAll drops all queued buffers, and all later ones.
func (s *sender) dropAll(err error) {
	s.mu.Lock()
	s.round = append(s.round, s.queue...)
	s.queue = nil
	s.broken = true
	s.mu.Unlock()
	s.onError(err)
	s.freeRound()
}

// tryWriteRound writes as much of the round as the socket accepts without blocking. It reports
// whether that was all.
func (s *sender) tryWriteRound() bool {
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
	s.freeRound()
	return true
}

// nonblockingWrite is one write that does not block. Its function is created once, so that a reply
// allocates no closure.
type nonblockingWrite struct {
	p     []byte
	n     int
	write func(fd uintptr) bool
}

func (a *nonblockingWrite) writeOnce(fd uintptr) bool {
	n, err := syscall.Write(int(fd), a.p)
	if err != nil {
		n = 0 // if it is a lasting error, the next blocking write returns it too
	}
	a.n = n
	return true
}
