package nbd

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakeUse is a connection's use: for how long it is idle, and whether it was used and is busy.
type fakeUse struct {
	idle            time.Duration
	requested, busy bool
}

func (u fakeUse) lastUse() (idle time.Duration, requested, busy bool) {
	return u.idle, u.requested, u.busy
}

// admissionRig is an admission with a limit of 8 connections.
type admissionRig struct {
	admission
	t *testing.T
}

const rigIdle = time.Minute // idle time of the rig

// admit admits a new connection and checks which one is evicted for it. It returns nil if the
// connection is refused.
func (r *admissionRig) admit(from peer, l *listenerUsage, evicted *admittedConn, ok bool) *admittedConn {
	r.t.Helper()
	c := &admittedConn{peer: from, listener: l}
	gotEvicted, gotOK := r.admitConn(c, 8, rigIdle)
	if gotEvicted != evicted || gotOK != ok {
		r.t.Errorf("admitConn = %p, %v, want %p, %v", gotEvicted, gotOK, evicted, ok)
	}
	if !gotOK {
		return nil
	}
	return c
}

// choose admits a connection that chooses an export.
func (r *admissionRig) choose(from peer, l *listenerUsage, use fakeUse) *admittedConn {
	r.t.Helper()
	c := r.admit(from, l, nil, true)
	if !r.exemptConn(c) {
		r.t.Error("exemptConn of an admitted connection = false")
	}
	r.trackUsage(c, use)
	return c
}

var (
	hostA, hostB = peer{"a", true}, peer{"b", true}
	user         = peer{"uid 1", false}
	inUse        = fakeUse{requested: true}
)

// TestAdmission: at the limit the oldest connection in its handshake is evicted.
func TestAdmission(t *testing.T) {
	r := &admissionRig{t: t}
	l := r.addListener()
	for range 6 {
		r.choose(user, l, inUse)
	}
	old := r.admit(user, l, nil, true)
	young := r.admit(user, l, nil, true)
	newer := r.admit(user, l, old, true)
	r.removeConn(old) // as its goroutine does later
	if r.exemptConn(old) || !r.exemptConn(young) || !r.exemptConn(newer) {
		t.Error("the oldest connection is not evicted, or another one is")
	}
	r.admit(user, l, nil, false)
	r.removeConn(young)
	r.removeConn(young)
	r.admit(user, l, nil, true)
	if n := r.count(); n != 8 {
		t.Errorf("%d connections are admitted, want 8", n)
	}
}

// TestPeerLimit: a host has at most half of the connections, and evicts only its own. The user of a
// unix socket may have all of them.
func TestPeerLimit(t *testing.T) {
	r := &admissionRig{t: t}
	l := r.addListener()
	other := r.admit(hostB, l, nil, true)
	for range 3 {
		r.choose(hostA, l, inUse)
	}
	own := r.admit(hostA, l, nil, true)
	r.admit(hostA, l, own, true)
	for range 3 {
		r.choose(hostB, l, inUse)
	}
	r.admit(hostB, l, other, true)
	users := &admissionRig{t: t}
	l = users.addListener()
	for range 8 {
		users.choose(user, l, inUse)
	}
}

// TestHostOf: all addresses of an IPv6 network of 64 bits are one host.
func TestHostOf(t *testing.T) {
	for at, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "192.0.2.1",
		"2001:db8::1": "2001:db8::/64", "2001:db8::ffff:0:0:2": "2001:db8::/64", "2001:db8:0:1::1": "2001:db8:0:1::/64",
		"fe80::1%lo": "fe80::/64",
	} {
		if got := hostOf(netip.MustParseAddr(at)); got != want {
			t.Errorf("hostOf(%s) = %s, want %s", at, got, want)
		}
	}
}

// TestListenerShare: each listener can use its share, whatever the clients of the others do.
func TestListenerShare(t *testing.T) {
	r := &admissionRig{t: t}
	first, second := r.addListener(), r.addListener()
	for range 6 {
		r.choose(user, first, inUse)
	}
	r.admit(user, first, nil, false)
	kept := r.admit(user, second, nil, true)
	r.admit(user, first, nil, false) // kept is within the share of its listener
	r.choose(user, second, inUse)
	r.admit(user, second, kept, true)
	r.removeListener(second)
}

// TestIdleIsEvicted: at the limit a connection without any request is evicted when it is idle, and a
// used one only for a peer with fewer connections.
func TestIdleIsEvicted(t *testing.T) {
	r := &admissionRig{t: t}
	l := r.addListener()
	busy := r.choose(user, l, fakeUse{idle: 9 * rigIdle, busy: true})
	recent := r.choose(user, l, fakeUse{idle: rigIdle - 1})
	short := r.choose(user, l, fakeUse{idle: 2 * rigIdle, requested: true})
	long := r.choose(user, l, fakeUse{idle: 3 * rigIdle, requested: true})
	unused := r.choose(user, l, fakeUse{idle: rigIdle})
	single := r.choose(hostB, l, fakeUse{idle: 9 * rigIdle, requested: true})
	for range 2 {
		r.choose(user, l, inUse)
	}
	newer := r.admit(user, l, unused, true)
	r.exemptConn(newer)
	r.admit(user, l, nil, false) // the others of this peer were used
	for _, victim := range []*admittedConn{long, short} {
		r.exemptConn(r.admit(hostA, l, victim, true))
	}
	r.admit(hostA, l, nil, false)
	for _, c := range []*admittedConn{busy, recent, single} {
		if c.removed {
			t.Errorf("a connection that is busy, recently used, or its peer's only one is evicted: %+v", c)
		}
	}
}

// chooseOverPipe connects to a server, and chooses the default export.
func chooseOverPipe(t *testing.T, s *Server, l *listenerUsage, conns *sync.WaitGroup) (client net.Conn, ok bool) {
	t.Helper()
	client, ours := net.Pipe()
	s.startConn(t.Context(), ours, l, conns)
	if _, err := io.CopyN(io.Discard, client, 18); err != nil {
		return client, false
	}
	if _, err := client.Write(append([]byte{0, 0, 0, 3}, optionBytes(optExportName, "")...)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, client, 10); err != nil {
		t.Fatal(err)
	}
	return client, true
}

// TestIdleConnIsEvicted: at the limit, an idle client that has read nothing makes room for another
// one. Its connection is closed. A client that has read something stays.
func TestIdleConnIsEvicted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &blockingDevice{size: 4096, release: make(chan struct{})}
		close(d.release)
		exports, err := NewStatic(&Export{Device: d})
		if err != nil {
			t.Fatal(err)
		}
		s := &Server{Exports: exports, MaxConns: 2}
		l := s.conns.addListener()
		var conns sync.WaitGroup
		used, _ := chooseOverPipe(t, s, l, &conns)
		read := func() {
			t.Helper()
			go used.Write(wireRequest(0, CmdRead, 0, 1))
			if _, err := io.CopyN(io.Discard, used, simpleSize+1); err != nil {
				t.Errorf("reading: %v", err)
			}
		}
		read()
		unused, _ := chooseOverPipe(t, s, l, &conns)
		time.Sleep(s.idleTime() - time.Nanosecond)
		if _, ok := chooseOverPipe(t, s, l, &conns); ok {
			t.Error("a client has evicted one that is not idle")
		}
		time.Sleep(time.Nanosecond)
		newer, ok := chooseOverPipe(t, s, l, &conns)
		if !ok {
			t.Error("a client is refused beside an idle one")
		}
		if _, err := unused.Read(make([]byte, 1)); err == nil {
			t.Error("the evicted client is connected")
		}
		read()
		_, _ = used.Close(), newer.Close()
		conns.Wait()
		if n := s.conns.count(); n != 0 {
			t.Errorf("%d connections are admitted", n)
		}
	})
}

// watchedConn calls a function before each write.
type watchedConn struct {
	net.Conn
	beforeWrite func(p []byte)
}

func (c *watchedConn) Write(p []byte) (int, error) {
	c.beforeWrite(p)
	return c.Conn.Write(p)
}

// TestExemptBeforeConfirmed: the server exempts a connection from eviction before it confirms the
// export. An evicted client gets no confirmation.
func TestExemptBeforeConfirmed(t *testing.T) {
	exports, err := NewStatic(&Export{Device: &blockingDevice{size: 4096}})
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[uint32]string{optGo: "\x00\x00\x00\x00\x00\x00", optExportName: ""} {
		for _, evicted := range []bool{false, true} {
			s := &Server{Exports: exports, MaxConns: 1}
			client, ours := net.Pipe()
			confirmed := false
			conn := &watchedConn{ours, func(p []byte) {
				switch greeting := len(p) == 18; {
				case greeting && evicted:
					s.conns.admitConn(&admittedConn{listener: new(listenerUsage)}, 1, time.Hour)
				case !greeting:
					confirmed = true
					if s.conns.conns[0].handshaking {
						t.Errorf("option %d: the client gets the confirmation while it can be evicted", name)
					}
				}
			}}
			var conns sync.WaitGroup
			s.startConn(t.Context(), conn, new(listenerUsage), &conns)
			answered := make(chan struct{})
			go func() {
				defer close(answered)
				_, _ = io.CopyN(io.Discard, client, 18)
				_, _ = client.Write(append([]byte{0, 0, 0, 3}, optionBytes(name, data)...))
				_, _ = client.Read(make([]byte, 1))
				_ = client.Close()
			}()
			<-answered
			conns.Wait()
			if confirmed == evicted {
				t.Errorf("option %d: evicted: %v, confirmed: %v", name, evicted, confirmed)
			}
		}
	}
}

// TestPool: large holders leave room for the others, each connection may have its share, and
// released bytes go to waiters.
func TestPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const mib = 1 << 20
		var p memoryPool
		var holders []*share
		for range 20 {
			holder := &share{pool: &p, limit: 256 * mib}
			for holder.held < 64*mib && holder.tryReserve(4*mib) {
			}
			holders = append(holders, holder)
		}
		if p.extra > 256*mib || p.used > p.extra+20*poolShare {
			t.Errorf("%d MiB are held, %d of them beyond the shares", p.used/mib, p.extra/mib)
		}
		small := &share{pool: &p, limit: 256 * mib}
		if !small.tryReserve(mib) {
			t.Error("a connection cannot reserve its share")
		}
		large := &share{pool: &p, limit: 256 * mib}
		got := make(chan bool)
		go func() { large.reserveBytes(64 * mib); close(got) }()
		for _, holder := range holders {
			synctest.Wait()
			select {
			case <-got:
			default:
				holder.releaseBytes(holder.held)
			}
		}
		<-got
		if large.held != 64*mib || p.extra > 256*mib {
			t.Errorf("%d MiB are had, and %d held", large.held/mib, p.used/mib)
		}
		alone := &share{pool: new(memoryPool), limit: 1}
		if !alone.tryReserve(64 * mib) {
			t.Error("a single request cannot exceed the limit")
		}
		if alone.tryReserve(2 * mib) {
			t.Error("a connection can exceed the limit by several requests")
		}
		exact := &share{pool: new(memoryPool), limit: 32 * mib}
		for range 20 {
			(&share{pool: exact.pool, limit: 32 * mib}).reserveBytes(mib)
		}
		if !exact.tryReserve(32 * mib) {
			t.Error("small requests of other connections delay a large one")
		}
	})
}

// TestBytesInAllAreBounded: clients that never read their replies hold at most MaxBytes, and a
// small read of another client succeeds.
func TestBytesInAllAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{MaxBytes: 128 << 20}
		d := &blockingDevice{size: maxPayload, release: make(chan struct{})}
		close(d.release)
		var clients []net.Conn
		var ended []chan error
		for range 20 {
			client, end := serveOverPipe(t.Context(), s, d)
			go func() {
				for range 16 {
					client.Write(wireRequest(0, CmdRead, 0, 8<<20))
				}
			}()
			clients, ended = append(clients, client), append(ended, end)
		}
		synctest.Wait()
		if s.memory.used > s.MaxBytes+20*poolShare || s.memory.used < s.MaxBytes/2 {
			t.Errorf("%d MiB are held, allowed are %d", s.memory.used>>20, s.MaxBytes>>20)
		}
		other, end := serveOverPipe(t.Context(), s, d)
		other.Write(wireRequest(0, CmdRead, 0, 128<<10))
		if _, err := io.ReadFull(other, make([]byte, simpleSize+128<<10)); err != nil {
			t.Error(err)
		}
		for _, c := range append(clients, other) {
			c.Close()
		}
		for _, e := range append(ended, end) {
			<-e
		}
		if s.memory.used != 0 {
			t.Errorf("%d bytes are still held", s.memory.used)
		}
	})
}
