package nbd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"cairn/nbd"
	"cairn/nbd/nbdtest"
)

// TestClosed sends data that ends a connection, and checks that it ends.
func TestClosed(t *testing.T) {
	greeting := []byte{0, 0, 0, 3}
	option := func(id uint32, data []byte) []byte { return append(greeting[:4:4], nbdtest.OptionBytes(id, data)...) }
	chosen := option(nbdtest.OptExportName, nil)
	request := func(q nbdtest.Request) []byte {
		return append(chosen[:len(chosen):len(chosen)], nbdtest.RequestBytes(1, q)...)
	}
	huge := append(option(nbdtest.OptInfo, nil)[:4+12], 0xff, 0xff, 0xff, 0xff)
	cases := []struct {
		what string
		send []byte
	}{
		{"unknown client flags", []byte{0, 0, 0, 7}},
		{"all client flags", []byte{0xff, 0xff, 0xff, 0xff}},
		{"garbage for an option", append(greeting[:4:4], bytes.Repeat([]byte("garbage!"), 10)...)},
		{"option of 4 GiB", huge},
		{"10000 options", append(greeting[:4:4], bytes.Repeat(nbdtest.OptionBytes(nbdtest.OptList, nil), 10000)...)},
		{"garbage for a request", append(chosen[:len(chosen):len(chosen)], bytes.Repeat([]byte("garbage!"), 10)...)},
		{"write of 64 MiB and a byte", request(nbdtest.Request{Command: nbdtest.CmdWrite, Length: 64*mib + 1})},
		{"write of 4 GiB", request(nbdtest.Request{Command: nbdtest.CmdWrite, Length: 1<<32 - 1})},
	}
	r := startServer(t, &nbd.Server{}, &nbd.Export{Device: &ram{data: make([]byte, mib)}})
	bystander := r.dialAndNegotiate(t)
	var before, after runtime.MemStats
	for _, tc := range cases {
		conn := r.dialRaw(t)
		runtime.ReadMemStats(&before)
		go conn.Write(tc.send) // fails when the server closes the connection
		io.Copy(io.Discard, conn)
		runtime.ReadMemStats(&after)
		if err := conn.SetDeadline(time.Now().Add(-1)); err != nil {
			t.Fatal(err)
		}
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 2*mib {
			t.Errorf("%s: took %d bytes of memory", tc.what, grown)
		}
		if err := bystander.Read(t.Context(), make([]byte, 512), 0); err != nil {
			t.Errorf("%s: another client's read = %v", tc.what, err)
		}
	}
}

func TestHandshakeTimeout(t *testing.T) {
	r := startServer(t, &nbd.Server{HandshakeTimeout: 500 * time.Millisecond}, &nbd.Export{Device: newLazy(data(mib))})
	client := r.dialAndNegotiate(t)
	var idle []net.Conn
	for range 50 {
		conn := r.dialRaw(t)
		conn.Write([]byte{0, 0, 0, 3, 'I', 'H'})
		idle = append(idle, conn)
	}
	for _, conn := range idle {
		// If the server's time has passed before the client's bytes arrive, the end is a reset.
		if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("an unfinished handshake ended with %v", err)
		}
	}
	if err := client.Read(t.Context(), make([]byte, 512), 0); err != nil {
		t.Errorf("the handshake's time must not end a session: %v", err)
	}
}

func TestMaxConns(t *testing.T) {
	r := startServer(t, &nbd.Server{MaxConns: 2}, &nbd.Export{Device: newLazy(data(mib))})
	first, second := r.dialAndNegotiate(t), r.dialAndNegotiate(t)
	if p, err := io.ReadAll(r.dialRaw(t)); len(p) > 0 || err != nil {
		t.Errorf("a third connection got %d bytes, %v", len(p), err)
	}
	if err := errors.Join(first.Disconnect(), second.Read(t.Context(), make([]byte, 1), 0)); err != nil {
		t.Error(err)
	}
}

// TestOnePeerTakesNotAll: beside the idle connections of one TCP client, other hosts and the clients
// of a unix socket connect at once.
func TestOnePeerTakesNotAll(t *testing.T) {
	s := &nbd.Server{MaxConns: 16}
	r := startServer(t, s, &nbd.Export{Device: newLazy(data(mib))})
	r.dialAndNegotiate(t).Close() // the unix socket is served
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- s.Serve(ctx, l) }()
	defer func() { stop(); <-served }()
	choose := func(host string) error {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(host)}}
		conn, err := dialer.DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		client, err := nbdtest.New(conn)
		if err != nil {
			return err
		}
		_, err = client.Go("")
		return err
	}
	chosen := 0
	for range 32 {
		if choose("127.0.0.1") == nil {
			chosen++
		}
	}
	if chosen != 8 {
		t.Errorf("one client has %d connections, want 8", chosen)
	}
	if err := choose("127.0.0.2"); err != nil {
		t.Errorf("another host: %v", err)
	}
	if err := r.dialAndNegotiate(t).Read(t.Context(), make([]byte, 512), 0); err != nil {
		t.Errorf("a client of the unix socket: %v", err)
	}
}

// A client that never reads its replies holds memory up to the limits, does not harm others, and is
// disconnected.
func TestClientThatNeverReads(t *testing.T) {
	for _, resident := range []bool{true, false} {
		d := newLazy(data(8 * mib))
		d.isResident = func(int64) bool { return resident }
		r := startServer(t, &nbd.Server{WriteTimeout: 300 * time.Millisecond}, &nbd.Export{Device: d})
		conn := chooseDefault(t, r)
		before := liveHeap()
		written := make(chan error, 1)
		go func() {
			read := nbdtest.RequestBytes(1, nbdtest.Request{Length: mib})
			_, err := conn.Write(bytes.Repeat(read, 100000)) // more than all buffers on the path hold
			written <- err
		}()
		other := r.dialAndNegotiate(t)
		if err := other.Read(t.Context(), make([]byte, mib), 0); err != nil {
			t.Errorf("another client's read = %v", err)
		}
		for open := true; open; {
			select {
			case err := <-written:
				if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("the server did not close the connection: %v", err)
				}
				open = false
			default:
			}
			if grown := liveHeap() - before; grown > 130*mib {
				t.Errorf("%d MiB of memory in use, allowed are 64, twice for the buffers' sizes", grown/mib)
			}
		}
	}
}

// liveHeap returns the number of bytes in use after a garbage collection.
func liveHeap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// chooseDefault returns a connection in the transmission phase.
func chooseDefault(t *testing.T, r *rig) net.Conn {
	conn := r.dialRaw(t)
	conn.Write(append([]byte{0, 0, 0, 3}, nbdtest.OptionBytes(nbdtest.OptExportName, nil)...))
	if _, err := io.ReadFull(conn, make([]byte, 28)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestStopAnswersWhatIsInFlight(t *testing.T) {
	d, begun, _, release := newBlockingDevice()
	r := startServer(t, &nbd.Server{}, &nbd.Export{Device: d})
	c, negotiating := r.dialAndNegotiate(t), r.dialClient(t)
	inFlight, err := c.Start(nbdtest.Request{Length: 512})
	if err != nil {
		t.Fatal(err)
	}
	<-begun
	r.stop()
	_, err = negotiating.List()
	if got := optionErrorType(t, err); got != nbdtest.RepErrShutdown {
		t.Errorf("an option when the server stops = %v", err)
	}
	_, err = c.Do(t.Context(), nbdtest.Request{Offset: 512, Length: 512})
	if got := errorCode(t, err); got != nbdtest.ESHUTDOWN {
		t.Errorf("a new request when the server stops = %v", err)
	}
	close(release)
	if _, err := inFlight(t.Context()); err != nil {
		t.Errorf("the request in flight = %v", err)
	}
	negotiating.Close()
	r.wait()
	if _, err := net.Dial("unix", r.socket); err == nil {
		t.Error("a new connection after the stop succeeds")
	}
}

func TestStopGivesUp(t *testing.T) {
	d, begun, ended, _ := newBlockingDevice()
	r := startServer(t, &nbd.Server{DrainTimeout: 20 * time.Millisecond}, &nbd.Export{Device: d})
	c := r.dialAndNegotiate(t)
	inFlight, err := c.Start(nbdtest.Request{Length: 512})
	if err != nil {
		t.Fatal(err)
	}
	<-begun
	r.stop()
	_, err = inFlight(t.Context())
	if got := errorCode(t, err); got != nbdtest.ESHUTDOWN {
		t.Errorf("a request in flight after the drain timeout = %v", err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the device's read ended with %v", err)
	}
	r.wait()
}

func TestStopWithClientThatNeverReads(t *testing.T) {
	d := newLazy(data(8 * mib))
	r := startServer(t, &nbd.Server{DrainTimeout: 20 * time.Millisecond}, &nbd.Export{Device: d})
	conn := chooseDefault(t, r)
	conn.Write(bytes.Repeat(nbdtest.RequestBytes(1, nbdtest.Request{Length: 8 * mib}), 4))
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil { // replies are being sent
		t.Fatal(err)
	}
	began := time.Now()
	r.stop()
	r.wait()
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("stopping took %v", took)
	}
}

// An idle client, in any phase, does not delay the server's end.
func TestStopWithIdleClients(t *testing.T) {
	r := startServer(t, &nbd.Server{}, &nbd.Export{Device: newLazy(data(mib))})
	r.dialAndNegotiate(t)
	r.dialClient(t)
	r.dialRaw(t)
	began := time.Now()
	r.stop()
	r.wait()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("stopping took %v", took)
	}
}

func TestServeTCPAndUnixAtOnce(t *testing.T) {
	s := &nbd.Server{}
	d := newLazy(data(mib))
	r := startServer(t, s, &nbd.Export{Device: d})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- s.Serve(ctx, l) }()
	c, err := nbdtest.Dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Go(""); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 300*kib)
	if err := c.Read(t.Context(), p, 1000); err != nil || !bytes.Equal(p, d.data[1000:][:len(p)]) {
		t.Errorf("read over TCP: %v, or other bytes", err)
	}
	if err := r.dialAndNegotiate(t).Read(t.Context(), p, 0); err != nil {
		t.Error(err)
	}
	stop()
	if err := <-served; err != nil {
		t.Errorf("Serve = %v", err)
	}
}

// If accepting fails, Serve returns the error.
func TestServeFails(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := new(nbd.Server).Serve(t.Context(), l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve = %v", err)
	}
}

// TestHitAllocatesNothing counts the allocations for reads of resident bytes, over many requests.
func TestHitAllocatesNothing(t *testing.T) {
	d := newLazy(data(mib))
	d.isResident = func(int64) bool { return true }
	conn := chooseDefault(t, startServer(t, &nbd.Server{}, &nbd.Export{Device: d}))
	conn.SetDeadline(time.Time{})
	const depth = 16
	requests := bytes.Repeat(nbdtest.RequestBytes(1, nbdtest.Request{Offset: 4 * kib, Length: 4 * kib}), depth)
	replies := make([]byte, depth*(16+4*kib))
	perBatch := testing.AllocsPerRun(2000, func() {
		if _, err := conn.Write(requests); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, replies); err != nil {
			t.Fatal(err)
		}
	})
	if perBatch >= depth/2 { // far below one a request; the garbage collector may empty the pool of buffers
		t.Errorf("%v allocations for %d requests", perBatch, depth)
	}
}

func BenchmarkHit(b *testing.B) {
	for _, depth := range []int{1, 64} {
		b.Run(fmt.Sprintf("depth=%d", depth), func(b *testing.B) {
			d := newLazy(data(mib))
			d.isResident = func(int64) bool { return true }
			r := startServer(b, &nbd.Server{}, &nbd.Export{Device: d})
			conn := r.dialRaw(b)
			conn.SetDeadline(time.Time{})
			conn.Write(append([]byte{0, 0, 0, 3}, nbdtest.OptionBytes(nbdtest.OptExportName, nil)...))
			io.ReadFull(conn, make([]byte, 28))
			requests := bytes.Repeat(nbdtest.RequestBytes(1, nbdtest.Request{Length: 4 * kib}), depth)
			replies := make([]byte, depth*(16+4*kib))
			b.SetBytes(int64(depth * 4 * kib))
			b.ReportAllocs()
			for b.Loop() {
				conn.Write(requests)
				if _, err := io.ReadFull(conn, replies); err != nil {
					b.Fatal(err)
				}
			}
			if binary.BigEndian.Uint32(replies) != 0x67446698 {
				b.Fatal("no reply")
			}
		})
	}
}
