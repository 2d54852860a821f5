package nbd

import (
	"context"
	"net"
	"slices"
	"sync"
)

// admission bounds the connections. One that has chosen its export has its place; one that has not may lose it to
// a newcomer, the oldest first, so that those who never choose keep nobody out. The zero value is ready.
type admission struct {
	mu    sync.Mutex // guards what follows
	n     int        // places taken
	fresh []*visitor // that have not chosen, oldest first
}

// visitor is a connection with a place.
type visitor struct {
	conn   net.Conn
	cancel context.CancelFunc // ends the handshake's work
	gone   bool               // its place is another's; guarded by admission.mu
}

// enter gives v a place, if there is one. The visitor that lost its place for it is returned, to be sent away.
func (a *admission) enter(v *visitor, places int) (lost *visitor, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.n >= places {
		if len(a.fresh) == 0 {
			return nil, false
		}
		lost = a.fresh[0]
		a.leaveLocked(lost)
	}
	a.n++
	a.fresh = append(a.fresh, v)
	return lost, true
}

// settle makes v's place its own, and says whether it still had one.
func (a *admission) settle(v *visitor) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fresh = without(a.fresh, v)
	return !v.gone
}

func (a *admission) leave(v *visitor) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.leaveLocked(v)
}

func (a *admission) leaveLocked(v *visitor) {
	if v.gone {
		return
	}
	v.gone = true
	a.n--
	a.fresh = without(a.fresh, v)
}

func without(all []*visitor, v *visitor) []*visitor {
	return slices.DeleteFunc(all, func(other *visitor) bool { return other == v })
}

// count returns how many places are taken.
func (a *admission) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.n
}
