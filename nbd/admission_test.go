package nbd

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestAdmission(t *testing.T) {
	var a admission
	enter := func(v, wantLost *visitor, wantOK bool) {
		t.Helper()
		if lost, ok := a.enter(v, 3); lost != wantLost || ok != wantOK {
			t.Errorf("enter = %p, %v, want %p, %v", lost, ok, wantLost, wantOK)
		}
	}
	settled, old, young, newer, last := new(visitor), new(visitor), new(visitor), new(visitor), new(visitor)
	enter(settled, nil, true)
	enter(old, nil, true)
	enter(young, nil, true)
	if !a.settle(settled) {
		t.Error("a visitor with a place has none")
	}
	enter(newer, old, true)
	a.leave(old) // as its goroutine does, some time later
	if a.settle(old) || !a.settle(young) || !a.settle(newer) {
		t.Error("the oldest keeps its place, or another has none")
	}
	enter(last, nil, false)
	a.leave(young)
	a.leave(young)
	enter(last, nil, true)
	if a.n != 3 {
		t.Errorf("%d places are taken, want 3", a.n)
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

// TestSettledBeforeTold: the place is the client's own when the server tells it that its export is chosen, and a client
// that has lost its place meanwhile is not told so.
func TestSettledBeforeTold(t *testing.T) {
	exports, err := NewStatic(&Export{Device: &patient{size: 4096}})
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[uint32]string{optGo: "\x00\x00\x00\x00\x00\x00", optExportName: ""} {
		for _, lost := range []bool{false, true} {
			s := &Server{Exports: exports, MaxConns: 1}
			client, ours := net.Pipe()
			told := false
			conn := &watchedConn{ours, func(p []byte) {
				switch greeting := len(p) == 18; {
				case greeting && lost:
					s.conns.enter(new(visitor), 1)
				case !greeting:
					told = true
					if len(s.conns.fresh) > 0 {
						t.Errorf("option %d: the client is told before its place is its own", name)
					}
				}
			}}
			var conns sync.WaitGroup
			s.start(t.Context(), conn, &conns)
			answered := make(chan struct{})
			go func() {
				defer close(answered)
				_, _ = io.CopyN(io.Discard, client, 18)
				_, _ = client.Write(append([]byte{0, 0, 0, 3}, frame(name, data)...))
				_, _ = client.Read(make([]byte, 1))
				_ = client.Close()
			}()
			<-answered
			conns.Wait()
			if told == lost {
				t.Errorf("option %d: lost its place: %v, told that its export is chosen: %v", name, lost, told)
			}
		}
	}
}

// TestPool: those who hold much leave room for the others, each may have its share, and what is given back is
// had by those who wait.
func TestPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const mib = 1 << 20
		var p pool
		var hogs []*share
		for range 20 {
			hog := &share{pool: &p, limit: 256 * mib}
			for hog.held < 64*mib && hog.tryTake(4*mib) {
			}
			hogs = append(hogs, hog)
		}
		if p.used > 256*mib {
			t.Errorf("%d MiB are held", p.used/mib)
		}
		small := &share{pool: &p, limit: 256 * mib}
		if !small.tryTake(mib) {
			t.Error("a connection has not got its share")
		}
		large := &share{pool: &p, limit: 256 * mib}
		got := make(chan bool)
		go func() { large.take(64 * mib); close(got) }()
		for _, hog := range hogs {
			synctest.Wait()
			select {
			case <-got:
			default:
				hog.give(hog.held)
			}
		}
		<-got
		if large.held != 64*mib || p.used > 256*mib {
			t.Errorf("%d MiB are had, and %d held", large.held/mib, p.used/mib)
		}
		alone := &share{pool: new(pool), limit: 1}
		if !alone.tryTake(64 * mib) {
			t.Error("whoever is alone may have what it likes")
		}
	})
}

// TestBytesInAllAreBounded: clients that ask and never read hold what MaxBytes says, and a small read passes them.
func TestBytesInAllAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{MaxBytes: 128 << 20}
		d := &patient{size: maxPayload, release: make(chan struct{})}
		close(d.release)
		var clients []net.Conn
		var ended []chan error
		for range 20 {
			client, end := serve(t.Context(), s, d)
			go func() {
				for range 16 {
					client.Write(wireRequest(0, CmdRead, 0, 8<<20))
				}
			}()
			clients, ended = append(clients, client), append(ended, end)
		}
		synctest.Wait()
		if s.held.used > s.MaxBytes+20*poolShare || s.held.used < s.MaxBytes/2 {
			t.Errorf("%d MiB are held, allowed are %d", s.held.used>>20, s.MaxBytes>>20)
		}
		other, end := serve(t.Context(), s, d)
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
		if s.held.used != 0 {
			t.Errorf("%d bytes are still held", s.held.used)
		}
	})
}

// TestSparing: a thousand strangers a second fill no log, and are counted.
func TestSparing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		var s sparing
		log := slog.New(slog.NewTextHandler(&text, nil))
		for range 1000 {
			s.warn(log, "no")
		}
		time.Sleep(sparingly)
		s.warn(log, "no")
		if n := strings.Count(text.String(), "msg=no"); n != 2 || !strings.Contains(text.String(), `"left out before"=999`) {
			t.Errorf("the log has\n%s", text.String())
		}
	})
}
