package nbd

import "sync"

// poolShare is the number of bytes that each connection may hold at any time. All usual requests
// fit in.
const poolShare = 1 << 20

// memoryPool counts the bytes that all connections hold. The zero value is ready to use.
type memoryPool struct {
	mu    sync.Mutex // guards the fields below, and held of all shares
	used  int
	extra int           // the bytes of each connection beyond poolShare
	room  chan struct{} // closed when bytes are released; nil without waiters
}

// usedBytes returns the number of bytes that all connections hold.
func (p *memoryPool) usedBytes() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.used
}

// share is one connection's share of a pool with a limit. A connection may hold poolShare, and beyond
// that as many bytes as it leaves to the others when it reserves more. So the first connections cannot
// take all bytes. The more connections do not read their replies, the less each of them may hold.
// Connections that hold no more than poolShare do not count, so that they do not delay large requests.
type share struct {
	pool  *memoryPool
	limit int
	held  int
}

// fits reports whether the connection may hold n more bytes. A single request may exceed the limit.
func (s *share) fits(n int) bool {
	extra := beyondShare(s.held + n)
	return extra == 0 || s.pool.extra == 0 || extra <= s.limit-s.pool.extra
}

func beyondShare(n int) int { return max(n-poolShare, 0) }

// tryReserve reserves n bytes and reports true, unless it would block.
func (s *share) tryReserve(n int) bool {
	s.pool.mu.Lock()
	defer s.pool.mu.Unlock()
	if !s.fits(n) {
		return false
	}
	s.addBytes(n)
	return true
}

// reserveBytes blocks until it has reserved n bytes. To avoid a deadlock, the caller must not keep
// a reservation that only it can release.
func (s *share) reserveBytes(n int) {
	s.pool.mu.Lock()
	defer s.pool.mu.Unlock()
	for !s.fits(n) {
		if s.pool.room == nil {
			s.pool.room = make(chan struct{})
		}
		room := s.pool.room
		s.pool.mu.Unlock()
		<-room
		s.pool.mu.Lock()
	}
	s.addBytes(n)
}

func (s *share) releaseBytes(n int) {
	s.pool.mu.Lock()
	defer s.pool.mu.Unlock()
	s.addBytes(-n)
	if s.pool.room != nil {
		close(s.pool.room)
		s.pool.room = nil
	}
}

func (s *share) addBytes(n int) {
	s.pool.extra += beyondShare(s.held+n) - beyondShare(s.held)
	s.pool.used += n
	s.held += n
}
