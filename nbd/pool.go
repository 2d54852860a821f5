package nbd

import "sync"

// poolShare is what each connection may hold whatever the others do. It lets all usual requests pass.
const poolShare = 1 << 20

// pool counts the bytes that all connections hold together. The zero value is ready.
type pool struct {
	mu   sync.Mutex // guards what follows, and all shares' held
	used int
	room chan struct{} // to be closed when bytes are given back; nil if nobody waits
}

// bytes returns how many bytes are held.
func (p *pool) bytes() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.used
}

// share is one connection's part of a pool that has a limit. What a connection holds beyond poolShare must not be
// more than what it leaves to the others: so the first ones cannot take it all, and those that do not read
// their replies get the less the more they are.
type share struct {
	pool  *pool
	limit int
	held  int
}

// fits says whether there may be n bytes more. Whoever is alone may have what it likes.
func (s *share) fits(n int) bool {
	most := max(poolShare, s.limit-s.pool.used)
	return s.held+n <= most || s.pool.used == s.held
}

// tryTake takes n bytes, if there is room.
func (s *share) tryTake(n int) bool {
	s.pool.mu.Lock()
	defer s.pool.mu.Unlock()
	if !s.fits(n) {
		return false
	}
	s.add(n)
	return true
}

// take takes n bytes, and waits until there is room. The connection must hold nothing that only its caller can
// give back.
func (s *share) take(n int) {
	s.pool.mu.Lock()
	defer s.pool.mu.Unlock()
	for !s.fits(n) {
		s.pool.wait()
	}
	s.add(n)
}

func (s *share) give(n int) {
	s.pool.mu.Lock()
	defer s.pool.mu.Unlock()
	s.add(-n)
	if s.pool.room != nil {
		close(s.pool.room)
		s.pool.room = nil
	}
}

func (s *share) add(n int) {
	s.held += n
	s.pool.used += n
}

// wait waits, with mu not held meanwhile, until bytes are given back.
func (p *pool) wait() {
	if p.room == nil {
		p.room = make(chan struct{})
	}
	room := p.room
	p.mu.Unlock()
	<-room
	p.mu.Lock()
}
