package nbd

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// admission limits the number of connections, so that no client keeps the others out. It has three
// limits:
//
//   - All connections together.
//   - The connections of one TCP peer: half of that, rounded up.
//   - The connections of one listener: it leaves the unused shares of the other listeners free. The
//     shares of all listeners together are half of all connections.
//
// A new connection that exceeds a limit evicts another one that counts towards it, and is refused if
// there is none to evict. The oldest connection in its handshake is evicted first, then an idle one.
// The zero value is ready to use.
type admission struct {
	mu        sync.Mutex       // guards the fields below, and most fields of connections and listeners
	conns     []*admittedConn  // admitted connections, oldest first
	listeners []*listenerUsage // of all running Serve calls
	peers     map[peer]int     // admitted connections
}

// listenerUsage counts the admitted connections of a listener.
type listenerUsage struct{ conns int }

// admittedConn is a connection that counts towards the limits.
type admittedConn struct {
	conn     net.Conn
	cancel   context.CancelFunc // cancels the handshake and the transmission
	peer     peer
	listener *listenerUsage

	handshaking bool  // it has not chosen an export
	use         usage // nil before the transmission
	removed     bool  // evicted or closed: it does not count any more
}

// usage is the use of a connection that has chosen an export.
type usage interface {
	// lastUse returns the time since the last request, or since the export was chosen if there was
	// no request. busy reports whether a request is in flight.
	lastUse() (idle time.Duration, requested, busy bool)
}

// peer identifies the host of a TCP connection, or the user of a unix socket's connection. Only
// hosts are limited: the permissions of a unix socket decide which users connect, and virtual
// machines of one user may need all connections.
type peer struct {
	name    string
	limited bool
}

// peerOf returns the peer of a connection.
func peerOf(conn net.Conn) peer {
	switch at := conn.RemoteAddr().(type) {
	case *net.TCPAddr:
		return peer{hostOf(at.AddrPort().Addr()), true}
	case *net.UnixAddr:
		if c, ok := conn.(*net.UnixConn); ok {
			return peer{name: "uid " + userOf(c)}
		}
	}
	return peer{}
}

// hostOf returns the host of an address. An IPv6 host can use any address of its /64 network.
func hostOf(at netip.Addr) string {
	at = at.Unmap()
	if network, err := at.WithZone("").Prefix(64); at.Is6() && err == nil {
		return network.String()
	}
	return at.String()
}

// userOf returns the user id of a unix socket's peer, or "".
func userOf(c *net.UnixConn) (uid string) {
	raw, err := c.SyscallConn()
	if err != nil {
		return ""
	}
	_ = raw.Control(func(fd uintptr) {
		if u, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			uid = strconv.Itoa(int(u.Uid))
		}
	})
	return uid
}

// addListener adds a listener, whose share of the connections is kept free from now on.
func (a *admission) addListener() *listenerUsage {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := new(listenerUsage)
	a.listeners = append(a.listeners, l)
	return l
}

// removeListener removes a listener without connections.
func (a *admission) removeListener(l *listenerUsage) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.listeners = slices.DeleteFunc(a.listeners, func(other *listenerUsage) bool { return other == l })
}

// admitConn counts c. At a limit it evicts another connection, which it returns, and which the
// caller must close. It reports false if there is none to evict. A connection without requests for
// idleTime is idle.
func (a *admission) admitConn(c *admittedConn, limit int, idleTime time.Duration) (evicted *admittedConn, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if makesRoom := a.exceeds(c, limit); makesRoom != nil {
		if evicted = a.chooseVictim(c, makesRoom, idleTime); evicted == nil {
			return nil, false
		}
		a.removeLocked(evicted)
	}
	if a.peers == nil {
		a.peers = make(map[peer]int)
	}
	c.handshaking = true
	a.conns = append(a.conns, c)
	a.peers[c.peer]++
	c.listener.conns++
	return evicted, true
}

// exceeds returns nil if there is room for c. Otherwise it returns a function that reports whether
// the end of another connection makes room.
func (a *admission) exceeds(c *admittedConn, limit int) (makesRoom func(other *admittedConn) bool) {
	share := limit / (2 * max(len(a.listeners), 1))
	free := limit - len(a.conns)
	for _, l := range a.listeners {
		if l != c.listener {
			free -= max(share-l.conns, 0)
		}
	}
	peerFull := c.peer.limited && a.peers[c.peer] >= limit-limit/2
	if free > 0 && !peerFull {
		return nil
	}
	return func(other *admittedConn) bool {
		return (!peerFull || other.peer == c.peer) &&
			(free > 0 || other.listener == c.listener || other.listener.conns > share)
	}
}

// chooseVictim returns the connection to evict for c, or nil.
func (a *admission) chooseVictim(
	c *admittedConn, makesRoom func(*admittedConn) bool, idleTime time.Duration,
) *admittedConn {
	var idle *admittedConn
	var longest idleness
	for _, other := range a.conns {
		switch {
		case !makesRoom(other):
		case other.handshaking:
			return other
		default:
			if i, is := a.idlenessOf(other, c, idleTime); is && (idle == nil || i.precedes(longest)) {
				idle, longest = other, i
			}
		}
	}
	return idle
}

// idleness orders idle connections for eviction.
type idleness struct {
	requested bool // there was a request
	peerConns int  // connections of the peer
	idle      time.Duration
}

// precedes reports whether a connection is evicted before another one: first one without any
// request, then one of the peer with the most connections, then the longest idle one.
func (i idleness) precedes(other idleness) bool {
	switch {
	case i.requested != other.requested:
		return !i.requested
	case i.peerConns != other.peerConns:
		return i.peerConns > other.peerConns
	}
	return i.idle > other.idle
}

// idlenessOf reports whether a connection may be evicted for c because it is idle. A connection that
// was used is evicted only if its peer has more connections than the peer of c will have: an unused
// disk of a virtual machine is no reason to take it away for another one.
func (a *admission) idlenessOf(other, c *admittedConn, idleTime time.Duration) (i idleness, is bool) {
	if other.use == nil {
		return i, false
	}
	idle, requested, busy := other.use.lastUse()
	i = idleness{requested, a.peers[other.peer], idle}
	return i, !busy && idle >= idleTime && (!requested || i.peerConns > a.peers[c.peer]+1)
}

// exemptConn protects c from eviction in its handshake. It reports false if c was evicted before.
func (a *admission) exemptConn(c *admittedConn) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	c.handshaking = false
	return !c.removed
}

// trackUsage makes c evictable while it is idle.
func (a *admission) trackUsage(c *admittedConn, use usage) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c.use = use
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
	a.conns = slices.DeleteFunc(a.conns, func(other *admittedConn) bool { return other == c })
	c.listener.conns--
	if a.peers[c.peer]--; a.peers[c.peer] == 0 {
		delete(a.peers, c.peer)
	}
}

// count returns the number of admitted connections.
func (a *admission) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.conns)
}
