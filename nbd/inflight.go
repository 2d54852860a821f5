package nbd

import "sync"

// Limits of one connection, from reading a request to writing its reply.
const (
	maxRequests  = 128
	maxHeldBytes = 64<<20 + maxRequests*headroom // bytes of buffers
)

// inFlightLimit limits the requests and bytes in flight of one connection, and its share of the
// server's memory. Only one goroutine acquires.
type inFlightLimit struct {
	share share

	mu       sync.Mutex // guards the fields below
	room     sync.Cond
	requests int
	bytes    int
	idle     chan struct{} // closed when no request is in flight; nil before whenIdle
}

func newInFlightLimit(pool *memoryPool, limit int) *inFlightLimit {
	l := &inFlightLimit{share: share{pool: pool, limit: limit}}
	l.room.L = &l.mu
	return l
}

func (l *inFlightLimit) fits(requests, bytes int) bool {
	return l.requests+requests <= maxRequests && l.bytes+bytes <= maxHeldBytes
}

// tryAcquireRoom acquires room and reports true, unless it would block.
func (l *inFlightLimit) tryAcquireRoom(requests, bytes int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.fits(requests, bytes) || bytes > 0 && !l.share.tryReserve(bytes) {
		return false
	}
	l.requests += requests
	l.bytes += bytes
	return true
}

// acquireRoom blocks until it has acquired room.
func (l *inFlightLimit) acquireRoom(requests, bytes int) {
	if bytes > 0 {
		defer l.share.reserveBytes(bytes)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for !l.fits(requests, bytes) {
		l.room.Wait()
	}
	l.requests += requests
	l.bytes += bytes
}

func (l *inFlightLimit) releaseRoom(requests, bytes int) {
	if bytes > 0 {
		l.share.releaseBytes(bytes)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests -= requests
	l.bytes -= bytes
	l.room.Signal()
	l.signalIdle()
}

// isBusy reports whether a request is in flight.
func (l *inFlightLimit) isBusy() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.requests > 0
}

// whenIdle returns a channel that is closed as soon as no request is in flight. It is called at
// most once.
func (l *inFlightLimit) whenIdle() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	idle := make(chan struct{})
	l.idle = idle
	l.signalIdle()
	return idle
}

func (l *inFlightLimit) signalIdle() {
	if l.idle != nil && l.requests == 0 {
		close(l.idle)
		l.idle = nil
	}
}
