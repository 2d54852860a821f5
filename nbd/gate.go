package nbd

import "sync"

// What one connection may hold at a time, from the reading of a request to the writing of its reply.
const (
	maxRequests = 128
	maxHeld     = 64<<20 + maxRequests*headroom // bytes of buffers
)

// gate bounds the requests and bytes that a connection holds, alone and with the others. Only one goroutine
// enters.
type gate struct {
	share share

	mu       sync.Mutex // guards what follows
	room     sync.Cond
	requests int
	bytes    int
	idle     chan struct{} // to be closed when no request is held; nil if nobody asked
}

func newGate(pool *pool, limit int) *gate {
	g := &gate{share: share{pool: pool, limit: limit}}
	g.room.L = &g.mu
	return g
}

func (g *gate) fits(requests, bytes int) bool {
	return g.requests+requests <= maxRequests && g.bytes+bytes <= maxHeld
}

// tryEnter takes room, if there is enough.
func (g *gate) tryEnter(requests, bytes int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.fits(requests, bytes) || bytes > 0 && !g.share.tryTake(bytes) {
		return false
	}
	g.requests += requests
	g.bytes += bytes
	return true
}

// enter takes room, and waits until there is enough.
func (g *gate) enter(requests, bytes int) {
	if bytes > 0 {
		defer g.share.take(bytes)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for !g.fits(requests, bytes) {
		g.room.Wait()
	}
	g.requests += requests
	g.bytes += bytes
}

// leave gives room back.
func (g *gate) leave(requests, bytes int) {
	if bytes > 0 {
		g.share.give(bytes)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.requests -= requests
	g.bytes -= bytes
	g.room.Signal()
	g.announce()
}

// whenIdle returns a channel that is closed once no request is held. It is called at most once.
func (g *gate) whenIdle() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	idle := make(chan struct{})
	g.idle = idle
	g.announce()
	return idle
}

func (g *gate) announce() {
	if g.idle != nil && g.requests == 0 {
		close(g.idle)
		g.idle = nil
	}
}
