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
	"sync/atomic"
	"time"
)

const (
	readBuffer    = 32 << 10 // for requests; it holds a thousand
	zeroWriteSize = 1 << 20  // bytes that WRITE_ZEROES writes at a time
	shutdownGrace = time.Second
)

var (
	errDisconnected = errors.New("the client disconnected")
	errStopping     = &refusal{errSHUTDOWN, "the server is stopping"}
)

// transmission is the second phase of a connection: requests and replies. One goroutine reads the
// requests and answers those that need no waiting. All others are answered by goroutines of their
// own.
type transmission struct {
	session
	conn         net.Conn
	client       *activeClient
	removeClient func(*activeClient)
	log          *slog.Logger
	drainTimeout time.Duration
	buffers      *bufferPool

	stopping    context.Context    // ends when the server stops: new requests are refused
	work        context.Context    // ends when the drain timeout has passed
	cancelWork  context.CancelFunc // ends work
	reads       context.Context    // ends with work, or when the client is gone
	cancelReads context.CancelFunc // ends reads

	writer    Writer   // nil if the export is read-only
	resident  Resident // nil if not supported, as the following
	extents   Extenter
	prefetch  Prefetcher
	describer Describer

	began       time.Time    // of the transmission
	lastRequest atomic.Int64 // time of the last batch of requests, in nanoseconds since began; 0 before it

	in             *bufio.Reader
	out            *sender
	inFlight       *inFlightLimit
	tasks          sync.WaitGroup
	batch          *buffer // completed replies that are not sent yet; nil without any
	pieces         []piece // of the current read
	residentFiller filler  // reads resident data
}

func newTransmission(
	ctx context.Context, s *Server, conn net.Conn, agreed *session, log *slog.Logger,
) *transmission {
	t := &transmission{
		session:      *agreed,
		conn:         conn,
		client:       s.clients.addClient(conn.RemoteAddr().String(), agreed.export, s.TLS != nil),
		removeClient: s.clients.removeClient,
		log:          log,
		drainTimeout: s.drainTimeout(),
		buffers:      &s.buffers,
		stopping:     ctx,
		began:        time.Now(),
		writer:       agreed.export.writer(),
		in:           bufio.NewReaderSize(conn, readBuffer),
		inFlight:     newInFlightLimit(&s.memory, s.maxBytes()),
	}
	t.resident, _ = agreed.export.Device.(Resident)
	t.extents, _ = agreed.export.Device.(Extenter)
	t.prefetch, _ = agreed.export.Device.(Prefetcher)
	t.describer, _ = agreed.export.Device.(Describer)
	t.residentFiller = t.fillResident
	t.work, t.cancelWork = context.WithCancel(context.WithoutCancel(ctx))
	t.reads, t.cancelReads = context.WithCancel(t.work)
	t.out = newSender(conn, s.writeTimeout())
	t.out.free, t.out.onError = t.freeBuffer, t.handleWriteError
	return t
}

// run serves requests until the client disconnects, violates the protocol or fails to receive
// replies, or the server stops. When it returns, all its goroutines have ended.
func (t *transmission) run() error {
	defer t.removeClient(t.client)
	defer t.cancelWork()
	defer onDone(t.stopping, t.shutDown)()
	err := t.readRequests()
	t.flushBatch()
	if !errors.Is(err, errDisconnected) {
		t.cancelReads()
	}
	t.awaitReplies()
	return err
}

// readRequests reads and handles requests. Before it blocks, it sends completed replies. When the
// client is gone, it drops further requests.
func (t *transmission) readRequests() error {
	for {
		if err := t.reads.Err(); err != nil {
			return err
		}
		waits := t.in.Buffered() < requestSize
		if waits {
			t.flushBatch()
		}
		p, err := t.in.Peek(requestSize)
		if err != nil {
			return err
		}
		if waits {
			t.lastRequest.Store(max(int64(time.Since(t.began)), 1))
		}
		q, ok := parseRequest(p)
		if !ok {
			return fmt.Errorf("a request starts with %#x", p[:4])
		}
		_, _ = t.in.Discard(requestSize) // cannot fail: the bytes are buffered
		if q.command == cmdDisconnect {
			return errDisconnected
		}
		if err := t.handleRequest(q); err != nil {
			return err
		}
	}
}

// lastUse implements usage.
func (t *transmission) lastUse() (idle time.Duration, requested, busy bool) {
	last := t.lastRequest.Load()
	return time.Since(t.began) - time.Duration(last), last > 0, t.inFlight.isBusy()
}

// awaitReplies blocks until all requests are answered. After a disconnect request, the client still
// gets its replies. If it closes the connection, its reads are cancelled.
func (t *transmission) awaitReplies() {
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		t.tasks.Wait()
		t.conn.SetReadDeadline(pastDeadline())
	}()
	_, _ = io.Copy(io.Discard, t.conn) // until the client closes the connection or all requests are answered
	t.cancelReads()
	<-answered
}

// shutDown ends the connection when the server stops: after the last reply, or after the drain
// timeout.
func (t *transmission) shutDown() {
	idle := t.inFlight.whenIdle()
	if !closedWithin(idle, t.drainTimeout) {
		t.cancelWork()
		if !closedWithin(idle, shutdownGrace) {
			hangUp(t.conn) // the client does not receive its replies
			return
		}
	}
	t.conn.SetReadDeadline(pastDeadline())
}

// handleWriteError logs an error of writing to the client, and ends the connection.
func (t *transmission) handleWriteError(err error) {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.log.Info("the client does not receive its replies", "err", err)
	} else {
		logEnd(t.log, "sending replies failed", err)
	}
	t.cancelReads()
	hangUp(t.conn)
}

// hangUp closes a connection without TLS's close message. Sending that would block while the client
// receives nothing.
func hangUp(conn net.Conn) {
	if secured, ok := conn.(*tls.Conn); ok {
		conn = secured.NetConn()
	}
	conn.Close()
}

// handleRequest answers a request, or starts a goroutine that does. An error ends the connection.
func (t *transmission) handleRequest(q request) error {
	t.acquireRoom(1, 0)
	if err := t.checkRequest(q); err != nil {
		return t.rejectRequest(q, err)
	}
	switch q.command {
	case CmdRead:
		t.handleRead(q)
	case CmdWrite:
		return t.handleWrite(q)
	case CmdWriteZeroes:
		t.handleWriteZeroes(q)
	case CmdFlush:
		t.answerAsync(q, t.newBuffer(1, 0), t.flushDevice)
	case CmdCache:
		t.answerAsync(q, t.newBuffer(1, 0), func() error { return t.prefetchRange(q) })
	case CmdBlockStatus:
		t.handleBlockStatus(q)
	}
	return nil
}

// rejectRequest sends an error reply. It discards the data of a write.
func (t *transmission) rejectRequest(q request, err error) error {
	if q.command == CmdWrite {
		if err := t.discardData(q.length); err != nil {
			t.inFlight.releaseRoom(1, 0)
			return err
		}
	}
	b := t.batchWithRoom(maxErrorReply)
	b.p = appendError(b.p, q, err, t.structured)
	b.requests++
	t.client.countReply(q, err)
	return nil
}

func (t *transmission) discardData(n uint32) error {
	if n > 2*maxPayload {
		return fmt.Errorf("a write has %d bytes", n)
	}
	t.flushUnlessBuffered(int(n))
	_, err := t.in.Discard(int(n))
	return err
}

func (t *transmission) handleWrite(q request) error {
	n := int(q.length)
	b := t.newBuffer(1, n)
	t.flushUnlessBuffered(n)
	data := b.p[:n]
	if _, err := io.ReadFull(t.in, data); err != nil {
		t.freeBuffer(b)
		return err
	}
	t.answerAsync(q, b, func() error {
		if err := t.writer.WriteAt(t.work, data, int64(q.offset)); err != nil {
			return err
		}
		return t.flushIfFUA(q)
	})
	return nil
}

// flushDevice flushes a writable device. A read-only export has no writes to flush.
func (t *transmission) flushDevice() error {
	if t.writer == nil {
		return nil
	}
	return t.writer.Flush(t.work)
}

// prefetchRange prefetches a range, if the device supports that.
func (t *transmission) prefetchRange(q request) error {
	if t.prefetch == nil {
		return nil
	}
	return t.prefetch.Prefetch(t.reads, int64(q.offset), int64(q.length))
}

// flushIfFUA flushes the device if the client requested a durable write (FUA).
func (t *transmission) flushIfFUA(q request) error {
	if q.flags&flagFUA == 0 {
		return nil
	}
	return t.writer.Flush(t.work)
}

// handleWriteZeroes writes zeros in parts. The buffer with the zeros is reused for the reply.
func (t *transmission) handleWriteZeroes(q request) {
	n := min(zeroWriteSize, q.length)
	b := t.newBuffer(1, int(n))
	t.answerAsync(q, b, func() error {
		zeros := b.p[:n]
		clear(zeros)
		for at, end := q.offset, q.offset+uint64(q.length); at < end; at += uint64(len(zeros)) {
			zeros = zeros[:min(uint64(len(zeros)), end-at)]
			if err := t.writer.WriteAt(t.work, zeros, int64(at)); err != nil {
				return err
			}
		}
		return t.flushIfFUA(q)
	})
}

// answerAsync runs work in a goroutine, and answers the request with its result in b.
func (t *transmission) answerAsync(q request, b *buffer, work func() error) {
	pending := t.client.beginRequest(q)
	t.tasks.Go(func() {
		err := t.reportFailure(q, work())
		t.client.endRequest(pending)
		if err != nil {
			b.p = appendError(b.p[:0], q, err, t.structured)
		} else {
			b.p = appendSimple(b.p[:0], q, 0)
		}
		t.client.countReply(q, err)
		t.out.sendBuffer(b)
	})
}

// reportFailure logs a failed request. It replaces the error of a request that the server cancelled
// to stop.
func (t *transmission) reportFailure(q request, err error) error {
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
