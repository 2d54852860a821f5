package nbd

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"
)

const (
	readBuffer    = 32 << 10 // of requests; a thousand fit
	zeroPiece     = 1 << 20  // WRITE_ZEROES writes as much at a time
	shutdownGrace = time.Second
)

var (
	errDisconnected = errors.New("the client disconnected")
	errStopping     = &refusal{errSHUTDOWN, "the server is stopping"}
)

// transmission is the second phase of a connection: requests and replies. One goroutine reads requests,
// and answers at once what needs no waiting; the rest runs in goroutines of its own.
type transmission struct {
	session
	conn         net.Conn
	seat         *seat
	leave        func(*seat)
	log          *slog.Logger
	drainTimeout time.Duration
	buffers      *buffers

	stopping context.Context    // over when the server stops: nothing new is begun
	work     context.Context    // over when the server cannot wait any longer
	stopWork context.CancelFunc // ends work
	reads    context.Context    // over also when the client has gone
	goodbye  context.CancelFunc // ends reads

	writer   Writer   // nil if read-only
	resident Resident // nil if there is none
	extents  Extenter // nil if there is none
	prefetch Prefetcher

	describer Describer // nil if there is none

	in    *bufio.Reader
	out   *sender
	gate  *gate
	tasks sync.WaitGroup
	batch *buffer // replies not yet sent; nil if there are none
	plan  []piece // of the read being answered
	now   filler  // reads what is resident
}

func newTransmission(
	ctx context.Context, s *Server, conn net.Conn, agreed *session, log *slog.Logger,
) *transmission {
	t := &transmission{
		session:      *agreed,
		conn:         conn,
		seat:         s.audience.enter(conn.RemoteAddr().String(), agreed.export, s.TLS != nil),
		leave:        s.audience.leave,
		log:          log,
		drainTimeout: s.drainTimeout(),
		buffers:      &s.buffers,
		stopping:     ctx,
		writer:       agreed.export.writer(),
		in:           bufio.NewReaderSize(conn, readBuffer),
		gate:         newGate(&s.held, s.maxBytes()),
	}
	t.resident, _ = agreed.export.Device.(Resident)
	t.extents, _ = agreed.export.Device.(Extenter)
	t.prefetch, _ = agreed.export.Device.(Prefetcher)
	t.describer, _ = agreed.export.Device.(Describer)
	t.now = t.fillNow
	t.work, t.stopWork = context.WithCancel(context.WithoutCancel(ctx))
	t.reads, t.goodbye = context.WithCancel(t.work)
	t.out = newSender(conn, s.writeTimeout())
	t.out.free, t.out.failed = t.free, t.lost
	return t
}

// run serves requests until the client leaves, breaks the protocol or cannot be written to, or the server
// stops. All that it started has ended when it returns.
func (t *transmission) run() error {
	defer t.leave(t.seat)
	defer t.stopWork()
	defer onDone(t.stopping, t.shutDown)()
	err := t.loop()
	t.flush()
	if !errors.Is(err, errDisconnected) {
		t.goodbye()
	}
	t.linger()
	return err
}

// loop reads requests. It sends what is answered before it waits for more, and drops what a lost client has asked.
func (t *transmission) loop() error {
	for {
		if err := t.reads.Err(); err != nil {
			return err
		}
		if t.in.Buffered() < requestSize {
			t.flush()
		}
		p, err := t.in.Peek(requestSize)
		if err != nil {
			return err
		}
		q, ok := parseRequest(p)
		if !ok {
			return fmt.Errorf("a request starts with %#x", p[:4])
		}
		_, _ = t.in.Discard(requestSize) // it is there
		if q.command == cmdDisconnect {
			return errDisconnected
		}
		if err := t.handle(q); err != nil {
			return err
		}
	}
}

// linger waits until all requests are answered. A client that said goodbye still gets its replies; when
// it closes the connection, nobody needs what it was going to read.
func (t *transmission) linger() {
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		t.tasks.Wait()
		t.conn.SetReadDeadline(past())
	}()
	_, _ = io.Copy(io.Discard, t.conn) // until the client hangs up, or all is answered
	t.goodbye()
	<-answered
}

// shutDown ends the connection because the server stops: soon after the last request is answered, or when
// the time for that is over.
func (t *transmission) shutDown() {
	idle := t.gate.whenIdle()
	if !closedWithin(idle, t.drainTimeout) {
		t.stopWork()
		if !closedWithin(idle, shutdownGrace) {
			hangUp(t.conn) // the client does not read
			return
		}
	}
	t.conn.SetReadDeadline(past())
}

// lost is called when the client cannot be written to.
func (t *transmission) lost(err error) {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.log.Info("the client does not take its replies", "err", err)
	} else {
		report(t.log, "replies are not sent", err)
	}
	t.goodbye()
	hangUp(t.conn)
}

// hangUp closes a connection without TLS's goodbye, for which a client that takes nothing would have us wait.
func hangUp(conn net.Conn) {
	if secured, ok := conn.(*tls.Conn); ok {
		conn = secured.NetConn()
	}
	conn.Close()
}

// handle answers a request or starts what will. An error ends the connection.
func (t *transmission) handle(q request) error {
	t.admit(1, 0)
	if err := t.check(q); err != nil {
		return t.reject(q, err)
	}
	switch q.command {
	case CmdRead:
		t.read(q)
	case CmdWrite:
		return t.write(q)
	case CmdWriteZeroes:
		t.writeZeroes(q)
	case CmdFlush:
		t.later(q, func() error { return t.flushDevice() })
	case CmdCache:
		t.later(q, func() error { return t.bringNear(q) })
	case CmdBlockStatus:
		t.blockStatus(q)
	}
	return nil
}

// reject answers a request that is not served. The data of a write is read and thrown away.
func (t *transmission) reject(q request, err error) error {
	if q.command == CmdWrite {
		if err := t.discard(q.length); err != nil {
			t.gate.leave(1, 0)
			return err
		}
	}
	b := t.place(maxErrorReply)
	b.p = appendError(b.p, q, err, t.structured)
	b.requests++
	t.seat.count(q, err)
	return nil
}

func (t *transmission) discard(n uint32) error {
	if n > 2*maxPayload {
		return fmt.Errorf("a write has %d bytes", n)
	}
	t.flushBefore(int(n))
	_, err := t.in.Discard(int(n))
	return err
}

func (t *transmission) write(q request) error {
	n := int(q.length)
	b := t.take(n)
	b.requests = 1
	t.flushBefore(n)
	data := b.p[:n]
	if _, err := io.ReadFull(t.in, data); err != nil {
		t.free(b)
		return err
	}
	t.finish(q, b, func() error {
		if err := t.writer.WriteAt(t.work, data, int64(q.offset)); err != nil {
			return err
		}
		return t.forceUnit(q)
	})
	return nil
}

// flushDevice makes durable what was written. Of a read-only export nothing was.
func (t *transmission) flushDevice() error {
	if t.writer == nil {
		return nil
	}
	return t.writer.Flush(t.work)
}

// bringNear passes a hint on to a device that takes hints.
func (t *transmission) bringNear(q request) error {
	if t.prefetch == nil {
		return nil
	}
	return t.prefetch.Prefetch(t.reads, int64(q.offset), int64(q.length))
}

// forceUnit makes a write durable if its client asked for that (FUA).
func (t *transmission) forceUnit(q request) error {
	if q.flags&flagFUA == 0 {
		return nil
	}
	return t.writer.Flush(t.work)
}

// writeZeroes writes them in pieces, out of a buffer that is also the reply's.
func (t *transmission) writeZeroes(q request) {
	n := min(zeroPiece, q.length)
	b := t.take(int(n))
	b.requests = 1
	t.finish(q, b, func() error {
		zeros := b.p[:n]
		clear(zeros)
		for at, end := q.offset, q.offset+uint64(q.length); at < end; at += uint64(len(zeros)) {
			zeros = zeros[:min(uint64(len(zeros)), end-at)]
			if err := t.writer.WriteAt(t.work, zeros, int64(at)); err != nil {
				return err
			}
		}
		return t.forceUnit(q)
	})
}

// later runs work in its own goroutine, and answers whether it succeeded.
func (t *transmission) later(q request, work func() error) {
	b := t.take(0)
	b.requests = 1
	t.finish(q, b, work)
}

func (t *transmission) finish(q request, b *buffer, work func() error) {
	pending := t.seat.begin(q)
	t.tasks.Go(func() {
		err := t.explain(q, work())
		t.seat.end(pending)
		if err != nil {
			b.p = appendError(b.p[:0], q, err, t.structured)
		} else {
			b.p = appendSimple(b.p[:0], q, 0)
		}
		t.seat.count(q, err)
		t.out.send(b)
	})
}

// explain logs why a request failed, and says in the server's words what it has failed itself.
func (t *transmission) explain(q request, err error) error {
	switch {
	case err == nil:
		return nil
	case t.work.Err() != nil:
		return errStopping
	case !errors.Is(err, context.Canceled):
		t.log.Warn("request failed", "command", q.command, "offset", q.offset, "length", q.length, "err", err)
	}
	return err
}
