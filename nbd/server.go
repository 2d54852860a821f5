package nbd

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"cairn/internal/loglimit"
)

// Server serves exports to NBD clients. Only Exports must be set. The fields must not change while
// it serves.
type Server struct {
	Exports Exports
	// Log receives messages for the operator; nil discards them.
	Log *slog.Logger

	// TLS, if not nil, is required of all clients: without it they can neither list nor open
	// exports. GetConfigForClient may return another configuration for each client.
	//
	// If ClientCAs sign with RSA, MaxVersion should be TLS 1.2. The GnuTLS clients, qemu and
	// libnbd, do not send such a certificate in TLS 1.3. The reason is that crypto/tls does not
	// offer PKCS #1 v1.5 among its signature algorithms.
	TLS *tls.Config

	// MaxConns limits the connections of all listeners at a time. One TCP peer has at most half of them,
	// and half of them are shared out among the listeners. At a limit, a new connection evicts the oldest
	// one that is in its handshake, or an idle one, or is refused. 0: 128
	MaxConns int
	// IdleTime is the time without requests after which a connection may be evicted at a limit. A
	// connection that was used before is evicted only for a peer with fewer connections. 0: 30 s
	IdleTime time.Duration
	// MaxBytes limits the bytes of requests and replies in memory, of all connections. Each connection
	// may hold 1 MiB beyond it, and a single request 32 MiB in any case. 0: 512 MiB
	MaxBytes int
	// HandshakeTimeout is the time from the start of the handshake until the export is chosen, with TLS.
	// Each listed export adds 500 ms. 0: 10 s
	HandshakeTimeout time.Duration
	// WriteTimeout is the time for a client to receive 1 MiB, or the rest of the replies. 0: 30 s
	WriteTimeout time.Duration
	// AckTimeout is the time for a client's host to acknowledge sent bytes (TCP). 0: 60 s
	AckTimeout time.Duration
	// DrainTimeout is the time for requests in flight when the server stops. 0: 10 s
	DrainTimeout time.Duration

	conns    admission
	memory   memoryPool
	buffers  bufferPool
	messages loglimit.Limiter
	clients  clientTable
}

func (s *Server) maxConns() int                   { return cmp.Or(s.MaxConns, 128) }
func (s *Server) idleTime() time.Duration         { return cmp.Or(s.IdleTime, 30*time.Second) }
func (s *Server) maxBytes() int                   { return cmp.Or(s.MaxBytes, 512<<20) }
func (s *Server) handshakeTimeout() time.Duration { return cmp.Or(s.HandshakeTimeout, 10*time.Second) }
func (s *Server) writeTimeout() time.Duration     { return cmp.Or(s.WriteTimeout, 30*time.Second) }
func (s *Server) ackTimeout() time.Duration       { return cmp.Or(s.AckTimeout, 60*time.Second) }
func (s *Server) drainTimeout() time.Duration     { return cmp.Or(s.DrainTimeout, 10*time.Second) }

// log returns the server's log, in which clients can cause a limited number of messages.
func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(loglimit.NewHandler(s.Log.Handler(), &s.messages))
}

// Serve accepts connections until ctx ends, and closes l. It may be called concurrently for several
// listeners.
//
// After the end of ctx it accepts no connections and no requests. Requests in flight have
// DrainTimeout to complete; after that they fail with ESHUTDOWN. Then Serve returns nil, and all
// its goroutines have ended. If accepting fails, Serve ends its connections in the same way and
// returns the error.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	listener := s.conns.addListener()
	defer s.conns.removeListener(listener)
	var conns sync.WaitGroup
	defer conns.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer onDone(ctx, func() { l.Close() })()
	defer cancel()
	for {
		conn, err := acceptConn(ctx, l)
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("accepting connections on %v: %w", l.Addr(), err)
		}
		s.startConn(ctx, conn, listener, &conns)
	}
}

// acceptConn accepts a connection. It retries while files or memory are short.
func acceptConn(ctx context.Context, l net.Listener) (net.Conn, error) {
	const pause = 50 * time.Millisecond
	for {
		conn, err := l.Accept()
		isTransient := isAny(err, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED)
		if !isTransient || ctx.Err() != nil {
			return conn, err
		}
		closedWithin(ctx.Done(), pause)
	}
}

// startConn serves a connection in a new goroutine, unless there are too many connections.
func (s *Server) startConn(ctx context.Context, conn net.Conn, listener *listenerUsage, conns *sync.WaitGroup) {
	log := s.log().With("client", conn.RemoteAddr().String())
	ctx, cancel := context.WithCancel(ctx)
	c := &admittedConn{conn: conn, cancel: cancel, peer: peerOf(conn), listener: listener}
	evicted, ok := s.conns.admitConn(c, s.maxConns(), s.idleTime())
	if !ok {
		cancel()
		conn.Close()
		s.clients.refused.Add(1)
		log.Warn("connection refused: too many connections", "limit", s.maxConns())
		return
	}
	if evicted != nil {
		s.clients.refused.Add(1)
		evicted.cancel()
		evicted.conn.Close()
		log.Warn("too many connections: evicted one in its handshake or an idle one",
			"evicted", evicted.conn.RemoteAddr().String(), "limit", s.maxConns())
	}
	s.setSocketOptions(conn)
	conns.Go(func() {
		defer cancel()
		defer s.conns.removeConn(c)
		defer conn.Close()
		s.serveConn(ctx, c, log)
	})
}

// setSocketOptions sets options of a connection. It ignores errors, because they only improve
// matters.
//
// The buffer of a unix socket does not grow by itself, as TCP's does. A buffer that holds a whole
// write saves most of the switches between client and server.
//
// A dead host acknowledges neither keepalive probes nor replies. The kernel repeats replies for 15
// minutes by default, and WriteTimeout does not limit the replies that the kernel has accepted.
func (s *Server) setSocketOptions(conn net.Conn) {
	switch c := conn.(type) {
	case *net.UnixConn:
		_ = c.SetWriteBuffer(writeSize)
	case *net.TCPConn:
		if raw, err := c.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) {
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(s.ackTimeout().Milliseconds()))
			})
		}
	}
}

func (s *Server) serveConn(ctx context.Context, c *admittedConn, log *slog.Logger) {
	conn, agreed, err := s.negotiate(ctx, c)
	if err != nil {
		logEnd(log, "handshake ended", err)
		return
	}
	defer agreed.export.callRelease()
	log = log.With("export", agreed.export.Name)
	log.Debug("connected", "structured", agreed.structured, "tls", s.TLS != nil)
	t := newTransmission(ctx, s, conn, agreed, log)
	s.conns.trackUsage(c, t)
	err = t.run()
	conn.Close() // sends TLS's close message, which the deferred close does not
	logEnd(log, "connection ended", err)
}

func logEnd(log *slog.Logger, what string, err error) {
	log.Log(context.Background(), levelOf(err), what, "cause", err)
}

// levelOf returns the log level for the end of a connection. Clients and health checks close and
// reset connections at any point: that is debug. A failed host or network is info. All other ends
// are warnings.
func levelOf(err error) slog.Level {
	switch {
	case isAny(err, syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.EHOSTDOWN, syscall.ENETUNREACH, syscall.ENETDOWN):
		return slog.LevelInfo
	case isAny(err, io.EOF, io.ErrUnexpectedEOF, syscall.EPIPE, syscall.ECONNRESET, net.ErrClosed, os.ErrDeadlineExceeded,
		context.Canceled, errAborted, errDisconnected, errEvicted):
		return slog.LevelDebug
	}
	return slog.LevelWarn
}

func isAny(err error, targets ...error) bool {
	return slices.ContainsFunc(targets, func(target error) bool { return errors.Is(err, target) })
}

// negotiate returns the session, and the connection for the transmission phase.
func (s *Server) negotiate(ctx context.Context, c *admittedConn) (net.Conn, *session, error) {
	limit := &handshakeDeadline{conn: c.conn}
	stop := onDone(ctx, func() { limit.setFinalDeadline(shutdownGrace) })
	h := handshake{
		conn: c.conn, exports: s.Exports, budget: newBudget(s.handshakeTimeout()),
		setDeadline: limit.setDeadline,
		exemptConn:  func() bool { return s.conns.exemptConn(c) },
	}
	secured := c.conn
	if s.TLS != nil {
		h.upgradeTLS = func() (io.ReadWriter, error) {
			server := tls.Server(c.conn, s.TLS)
			secured = server
			return server, server.Handshake() // the connection's deadline limits it
		}
	}
	agreed, err := h.run(ctx)
	stop()
	if err != nil {
		return nil, nil, err
	}
	if err := c.conn.SetDeadline(time.Time{}); err != nil {
		agreed.export.callRelease()
		return nil, nil, err
	}
	return secured, agreed, nil
}

// handshakeDeadline sets the deadline of a connection in its handshake.
type handshakeDeadline struct {
	conn net.Conn

	mu    sync.Mutex // guards the field below
	final bool
}

// setDeadline sets the deadline, unless the final one is set.
func (l *handshakeDeadline) setDeadline(to time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.final {
		return nil
	}
	return l.conn.SetDeadline(to)
}

// setFinalDeadline sets a deadline that setDeadline does not change any more.
func (l *handshakeDeadline) setFinalDeadline(after time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.final = true
	l.conn.SetDeadline(time.Now().Add(after))
}

// onDone calls f in a new goroutine when ctx ends. stop prevents the call, or waits until f has
// returned.
func onDone(ctx context.Context, f func()) (stop func()) {
	ran := make(chan struct{})
	cancelCall := context.AfterFunc(ctx, func() {
		defer close(ran)
		f()
	})
	return func() {
		if !cancelCall() {
			<-ran
		}
	}
}

// closedWithin blocks until c is closed or d has passed. It reports whether c is closed.
func closedWithin(c <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-c:
		return true
	case <-timer.C:
		return false
	}
}

// pastDeadline returns a deadline that has passed. It ends reads and writes in progress.
func pastDeadline() time.Time { return time.Unix(1, 0) }
