package nbd

import (
	"context"
	"net"
	"slices"
	"sync"
)

// admission limits the number of connections. When the limit is reached, a new connection evicts
// the oldest one that is still in its handshake. So clients that never choose an export do not lock
// out others. The zero value is ready to use.
type admission struct {
	mu          sync.Mutex      // guards the fields below, and removed of all connections
	n           int             // admitted connections
	handshaking []*admittedConn // the ones that have not chosen an export, oldest first
}

// admittedConn is a connection that counts towards the limit.
type admittedConn struct {
	conn    net.Conn
	cancel  context.CancelFunc // cancels the handshake
	removed bool               // evicted or closed: it does not count any more
}

// admitConn counts c, unless limit connections are admitted and none of them is in its handshake.
// If it evicted a connection for c, it returns that connection, which the caller must close.
func (a *admission) admitConn(c *admittedConn, limit int) (evicted *admittedConn, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.n >= limit {
		if len(a.handshaking) == 0 {
			return nil, false
		}
		evicted = a.handshaking[0]
		a.removeLocked(evicted)
	}
	a.n++
	a.handshaking = append(a.handshaking, c)
	return evicted, true
}

// exemptConn protects c from eviction. It reports false if c was evicted before.
func (a *admission) exemptConn(c *admittedConn) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.handshaking = withoutConn(a.handshaking, c)
	return !c.removed
}

func (a *admission) removeConn(c *admittedConn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.removeLocked(c)
}

func (a *admission) removeLocked(c *admittedConn) {
	if c.removed {
		return
	}
	c.removed = true
	a.n--
	a.handshaking = withoutConn(a.handshaking, c)
}

func withoutConn(all []*admittedConn, c *admittedConn) []*admittedConn {
	return slices.DeleteFunc(all, func(other *admittedConn) bool { return other == c })
}

// count returns the number of admitted connections.
func (a *admission) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.n
}
