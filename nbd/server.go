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
)

// Server answers NBD clients. Only Exports must be set; nothing may be changed while it serves.
type Server struct {
	Exports Exports
	// Log gets what an operator may want to know; nil discards it.
	Log *slog.Logger

	// TLS, if set, is required of every client: without it there is neither a list nor an export. Its
	// GetConfigForClient may choose anew for each client. Where ClientCAs sign with RSA it should go no further
	// than TLS 1.2: GnuTLS's clients, which are qemu and libnbd, keep such a certificate back in TLS 1.3, since
	// crypto/tls does not list PKCS #1 v1.5 among the signatures it takes.
	TLS *tls.Config

	MaxConns         int           // connections at a time, of all listeners, as admission says. 0: 128
	MaxBytes         int           // of requests and replies in memory, of all connections, as share says. 0: 512 MiB
	HandshakeTimeout time.Duration // from the server's greeting until the export is chosen, TLS included; more after a long list. 0: 10 s
	WriteTimeout     time.Duration // for a client to take 1 MiB, or what there is to send. 0: 30 s
	AckTimeout       time.Duration // for a client's host to acknowledge over TCP what it was sent. 0: 60 s
	DrainTimeout     time.Duration // for requests in flight when the server stops. 0: 10 s

	conns     admission
	held      pool
	buffers   buffers
	strangers sparing
	audience  audience
}

func (s *Server) maxConns() int                   { return cmp.Or(s.MaxConns, 128) }
func (s *Server) maxBytes() int                   { return cmp.Or(s.MaxBytes, 512<<20) }
func (s *Server) handshakeTimeout() time.Duration { return cmp.Or(s.HandshakeTimeout, 10*time.Second) }
func (s *Server) writeTimeout() time.Duration     { return cmp.Or(s.WriteTimeout, 30*time.Second) }
func (s *Server) ackTimeout() time.Duration       { return cmp.Or(s.AckTimeout, 60*time.Second) }
func (s *Server) drainTimeout() time.Duration     { return cmp.Or(s.DrainTimeout, 10*time.Second) }

func (s *Server) log() *slog.Logger { return cmp.Or(s.Log, slog.New(slog.DiscardHandler)) }

// Serve accepts connections until ctx ends, and closes l. It may be called for several listeners at once.
// When ctx ends, no connection and no request is taken on any more; requests in flight get DrainTimeout to
// be answered, and ESHUTDOWN after that. Serve returns nil when all that has happened and every goroutine
// has ended, or why it could not accept.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	var conns sync.WaitGroup
	defer conns.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer onDone(ctx, func() { l.Close() })()
	defer cancel()
	for {
		conn, err := accept(ctx, l)
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("accepting connections on %v: %w", l.Addr(), err)
		}
		s.start(ctx, conn, &conns)
	}
}

// accept waits for a connection. Lack of files or memory passes, and is waited for.
func accept(ctx context.Context, l net.Listener) (net.Conn, error) {
	const pause = 50 * time.Millisecond
	for {
		conn, err := l.Accept()
		if err == nil || ctx.Err() != nil || !passes(err) {
			return conn, err
		}
		closedWithin(ctx.Done(), pause)
	}
}

func passes(err error) bool {
	return isAny(err, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED)
}

// start serves a connection in a goroutine of its own, if there is room for it.
func (s *Server) start(ctx context.Context, conn net.Conn, conns *sync.WaitGroup) {
	log := s.log().With("client", conn.RemoteAddr().String())
	ctx, cancel := context.WithCancel(ctx)
	v := &visitor{conn: conn, cancel: cancel}
	lost, ok := s.conns.enter(v, s.maxConns())
	if !ok {
		cancel()
		conn.Close()
		s.audience.refused.Add(1)
		s.strangers.warn(log, "connection refused: too many", "limit", s.maxConns())
		return
	}
	if lost != nil {
		s.audience.refused.Add(1)
		lost.cancel()
		lost.conn.Close()
		s.strangers.warn(log, "too many connections: one without an export made room for this", "limit", s.maxConns())
	}
	s.tune(conn)
	conns.Go(func() {
		defer cancel()
		defer s.conns.leave(v)
		defer conn.Close()
		s.serve(ctx, v, log)
	})
}

// tune sets a connection's options. They are a help: the system may allow less.
//
// A unix socket's buffer does not grow by itself, as TCP's does; one that holds a whole write spares the client and us
// most of the turns. A host that dies answers nothing, neither keepalive probes nor the replies that the kernel sends
// again and again, for 15 minutes by default, while no read or write of ours waits.
func (s *Server) tune(conn net.Conn) {
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

func (s *Server) serve(ctx context.Context, v *visitor, log *slog.Logger) {
	conn, agreed, err := s.negotiate(ctx, v)
	if err != nil {
		if level := levelOf(err); level < slog.LevelWarn {
			log.Log(context.Background(), level, "handshake ended", "cause", err)
		} else {
			s.strangers.warn(log, "handshake ended", "cause", err)
		}
		return
	}
	defer agreed.export.release()
	log = log.With("export", agreed.export.Name)
	log.Debug("connected", "structured", agreed.structured, "tls", s.TLS != nil)
	err = newTransmission(ctx, s, conn, agreed, log).run()
	conn.Close() // TLS has a goodbye of its own
	report(log, "connection ended", err)
}

// report logs how a connection ended.
func report(log *slog.Logger, what string, err error) {
	log.Log(context.Background(), levelOf(err), what, "cause", err)
}

// levelOf is the level at which the end of a connection is logged: a warning unless it is how connections end. Clients
// and health checks close and reset them at any point; hosts and networks fail.
func levelOf(err error) slog.Level {
	switch {
	case isAny(err, syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.EHOSTDOWN, syscall.ENETUNREACH, syscall.ENETDOWN):
		return slog.LevelInfo
	case isAny(err, io.EOF, io.ErrUnexpectedEOF, syscall.EPIPE, syscall.ECONNRESET, net.ErrClosed, os.ErrDeadlineExceeded,
		context.Canceled, errAborted, errDisconnected, errNoPlace):
		return slog.LevelDebug
	}
	return slog.LevelWarn
}

func isAny(err error, targets ...error) bool {
	return slices.ContainsFunc(targets, func(target error) bool { return errors.Is(err, target) })
}

// negotiate returns the connection as it is to be used from now on, and what was agreed.
func (s *Server) negotiate(ctx context.Context, v *visitor) (net.Conn, *session, error) {
	limit := &timeLimit{conn: v.conn}
	stop := onDone(ctx, func() { limit.end(shutdownGrace) })
	h := handshake{
		conn: v.conn, exports: s.Exports, budget: newBudget(s.handshakeTimeout()),
		extend: limit.extend,
		settle: func() bool { return s.conns.settle(v) },
	}
	secured := v.conn
	if s.TLS != nil {
		h.secure = func() (io.ReadWriter, error) {
			server := tls.Server(v.conn, s.TLS)
			secured = server
			return server, server.Handshake() // conn's deadline ends it
		}
	}
	agreed, err := h.run(ctx)
	stop()
	if err != nil {
		return nil, nil, err
	}
	if err := v.conn.SetDeadline(time.Time{}); err != nil {
		agreed.export.release()
		return nil, nil, err
	}
	return secured, agreed, nil
}

// timeLimit is the time at which a connection's reads and writes fail.
type timeLimit struct {
	conn net.Conn

	mu    sync.Mutex // guards what follows
	ended bool
}

// extend moves the limit, unless its end was set.
func (l *timeLimit) extend(to time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return nil
	}
	return l.conn.SetDeadline(to)
}

// end sets the limit for good.
func (l *timeLimit) end(after time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	l.conn.SetDeadline(time.Now().Add(after))
}

// onDone has f run when ctx ends. The function it returns calls that off, or waits until f has run.
func onDone(ctx context.Context, f func()) (stop func()) {
	ran := make(chan struct{})
	callOff := context.AfterFunc(ctx, func() {
		defer close(ran)
		f()
	})
	return func() {
		if !callOff() {
			<-ran
		}
	}
}

// closedWithin waits for a channel to be closed, and says whether it was in time.
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

// past is a deadline that ends what waits.
func past() time.Time { return time.Unix(1, 0) }
