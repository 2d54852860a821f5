package nbd

import (
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
)

func TestAdmission(t *testing.T) {
	var a admission
	admit := func(c, wantEvicted *admittedConn, wantOK bool) {
		t.Helper()
		if evicted, ok := a.admitConn(c, 3); evicted != wantEvicted || ok != wantOK {
			t.Errorf("admitConn = %p, %v, want %p, %v", evicted, ok, wantEvicted, wantOK)
		}
	}
	exempt, old, young, newer, last := &admittedConn{}, &admittedConn{}, &admittedConn{}, &admittedConn{}, &admittedConn{}
	admit(exempt, nil, true)
	admit(old, nil, true)
	admit(young, nil, true)
	if !a.exemptConn(exempt) {
		t.Error("exemptConn of an admitted connection = false")
	}
	admit(newer, old, true)
	a.removeConn(old) // as its goroutine does later
	if a.exemptConn(old) || !a.exemptConn(young) || !a.exemptConn(newer) {
		t.Error("the oldest connection is not evicted, or another one is")
	}
	admit(last, nil, false)
	a.removeConn(young)
	a.removeConn(young)
	admit(last, nil, true)
	if a.n != 3 {
		t.Errorf("%d connections are admitted, want 3", a.n)
	}
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
					s.conns.admitConn(new(admittedConn), 1)
				case !greeting:
					confirmed = true
					if len(s.conns.handshaking) > 0 {
						t.Errorf("option %d: the client gets the confirmation while it can be evicted", name)
					}
				}
			}}
			var conns sync.WaitGroup
			s.startConn(t.Context(), conn, &conns)
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
		if p.used > 256*mib {
			t.Errorf("%d MiB are held", p.used/mib)
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
		if large.held != 64*mib || p.used > 256*mib {
			t.Errorf("%d MiB are had, and %d held", large.held/mib, p.used/mib)
		}
		alone := &share{pool: new(memoryPool), limit: 1}
		if !alone.tryReserve(64 * mib) {
			t.Error("the only connection cannot exceed the limit")
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
