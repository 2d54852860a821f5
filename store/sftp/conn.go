package sftp

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pkg/sftp"

	"cairn/store"
)

// conn is an SFTP session over an ssh of its own. Requests of many calls are in flight on it at once. Safe for
// concurrent use. A conn that has failed stays so.
type conn struct {
	client   *sftp.Client
	ssh      *process
	patience time.Duration
	done     chan struct{} // closed when the conn has failed and ssh has ended

	listing  sync.RWMutex // each readDir holds it for reading
	names    atomic.Int64 // bytes of the names that came since no readDir was running
	maxNames int64

	mu      sync.Mutex // guards all below
	running int        // calls, with those whose caller has left
	moved   time.Time  // when bytes last went either way
	watch   *time.Timer
	reason  error // why the conn has failed
	closing bool
	idle    chan struct{} // has room for one word: closing is set and running is 0
}

const (
	pipeBuffer = 64 << 10
	maxPacket  = 256 << 10 // of OpenSSH and of the client
	packetData = 103       // the types of SFTP's packets that answers looks at
	packetName = 104
)

// The client collects a directory's names in memory. A conn fails when more bytes of names than these are held for its
// listings; at a fourth of it, new listings wait until the running ones have ended.
const maxNames = 64 << 20

var (
	errStalled = errors.New("the server does not answer")
	errClosed  = errors.New("closed")
	errEnded   = errors.New("the connection ended")
	errGarbled = errors.New("the server's answer is not SFTP (does its shell print something at login?)")
	errNames   = fmt.Errorf("a directory has more than %d MiB of names", maxNames>>20)
)

// dial starts an ssh and an SFTP session over it. ctx is the bucket's life.
func dial(ctx context.Context, at Location, o Options) (*conn, error) {
	p, err := startProcess(o.Program, sshArgs(at, o))
	if err != nil {
		return nil, explainStart(o.Program, err)
	}
	c, err := newConn(ctx, p, o.Patience)
	if err != nil {
		p.end()
		return nil, explainConnect(p.words.String(), err)
	}
	return c, nil
}

// newConn begins a session. ssh has its own limit for connecting, and as long again to log in.
func newConn(ctx context.Context, p *process, patience time.Duration) (*conn, error) {
	c := &conn{ssh: p, patience: patience, maxNames: maxNames, done: make(chan struct{}), idle: make(chan struct{}, 1)}
	slow := time.AfterFunc(2*patience, p.kill)
	defer slow.Stop()
	defer context.AfterFunc(ctx, p.kill)()
	client, err := sftp.NewClientPipe(&answers{conn: c, in: bufio.NewReaderSize(p.out, pipeBuffer)}, requests{c},
		sftp.UseConcurrentWrites(true))
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return nil, errClosed
	case !slow.Stop():
		return nil, errStalled
	case errors.Is(c.reason, errEnded):
		return nil, errors.New("no connection")
	default:
		return nil, errGarbled
	}
	c.client = client
	c.mu.Lock()
	c.watch = time.AfterFunc(patience, c.look)
	c.mu.Unlock()
	go c.awaitEnd()
	return c, nil
}

// requests is the client's way to ssh.
type requests struct{ *conn }

// Write implements io.Writer. Its error is errEnded: answers finds out why.
func (r requests) Write(p []byte) (int, error) {
	n, err := r.ssh.in.Write(p)
	r.touch()
	if err != nil {
		err = errEnded
	}
	return n, err
}

// Close implements io.Closer.
func (r requests) Close() error { return r.ssh.in.Close() }

// answers is the client's way from ssh. It refuses what the client would take: data of no bytes, which the client asks
// for again without end, and names without end.
type answers struct {
	*conn
	in   *bufio.Reader
	rest int // bytes of the packet that the client reads
}

// Read implements io.Reader.
func (a *answers) Read(p []byte) (int, error) {
	if a.rest == 0 {
		if err := a.begin(); err != nil {
			a.end(err)
			return 0, err
		}
	}
	n, err := a.in.Read(p[:min(len(p), a.rest)])
	a.rest -= n
	a.touch()
	if err != nil {
		a.end(errEnded)
	}
	return n, err
}

// end also ends a request that waits for room in the pipe to ssh: the client cannot end before.
func (a *answers) end(reason error) {
	a.fail(reason)
	a.ssh.in.Close()
}

// begin looks at the head of the next packet: length, type, number, and a count of bytes or names.
func (a *answers) begin() error {
	head, err := a.in.Peek(9)
	if err != nil && len(head) < 4 {
		return errEnded
	}
	length := int(binary.BigEndian.Uint32(head))
	switch {
	case length < 5 || length > maxPacket:
		return errGarbled
	case err != nil:
		return errEnded
	}
	switch head[4] {
	case packetData:
		if length < 9 {
			return errGarbled
		}
		if head, err = a.in.Peek(13); err != nil {
			return errEnded
		}
		if binary.BigEndian.Uint32(head[9:]) == 0 {
			return errGarbled
		}
	case packetName:
		if a.names.Add(int64(length)) > a.maxNames {
			return errNames
		}
	}
	a.rest = 4 + length
	return nil
}

// offers reports whether the server has an extension in the version that we know.
func (c *conn) offers(extension string) bool {
	version, _ := c.client.HasExtension(extension)
	return version == "1"
}

// enter begins a call, which ends with exit.
func (c *conn) enter() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running == 0 {
		c.moved = time.Now()
	}
	c.running++
}

func (c *conn) exit() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running--
	c.signalIdle()
}

// signalIdle tells close that the last call has ended. The caller holds mu.
func (c *conn) signalIdle() {
	if c.closing && c.running == 0 {
		select {
		case c.idle <- struct{}{}:
		default:
		}
	}
}

func (c *conn) touch() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.moved = time.Now()
}

// look ends a connection that has been silent for the patience. Nothing is due while no call is running.
func (c *conn) look() {
	silent := time.Duration(0)
	c.mu.Lock()
	if c.running > 0 {
		silent = time.Since(c.moved)
	}
	if c.reason == nil && silent < c.patience {
		c.watch.Reset(c.patience - silent)
	}
	c.mu.Unlock()
	if silent >= c.patience {
		c.abort(errStalled)
	}
}

// abort ends the connection by force.
func (c *conn) abort(reason error) {
	c.fail(reason)
	c.ssh.in.Close()
	c.ssh.kill()
}

// fail notes why the connection ends. Only the first reason counts.
func (c *conn) fail(reason error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reason == nil {
		c.reason = reason
	}
}

// awaitEnd waits until the client has ended, ends ssh, and makes the reason final.
func (c *conn) awaitEnd() {
	_ = c.client.Wait() // answers has noted the reason
	c.ssh.end()
	c.fail(errEnded)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watch.Stop()
	words := c.ssh.words.String()
	switch {
	case c.closing:
		c.reason = errClosed
	case errors.Is(c.reason, errGarbled), errors.Is(c.reason, errNames):
	case errors.Is(c.reason, errEnded) && words != "":
		c.reason = &store.UnavailableError{Err: fmt.Errorf("%w: ssh says: %s", c.reason, words)}
	default:
		c.reason = &store.UnavailableError{Err: c.reason}
	}
	close(c.done)
}

func (c *conn) failed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reason != nil
}

// status is what a server answers to what it refuses or fails to do. It wraps the client's value for its code.
type status struct {
	code error
	text string
}

func (s *status) Error() string { return s.text }
func (s *status) Unwrap() error { return s.code }

// check returns what an error of the client means: a status; fs.ErrNotExist and fs.ErrPermission, which the client
// makes of two of them; or the reason why the connection ended. Any other answer is not SFTP, and ends the connection.
func (c *conn) check(err error) error {
	if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return err
	}
	if s, ok := errors.AsType[*sftp.StatusError](err); ok {
		return &status{s.FxCode(), fmt.Sprintf("%.200s", s)}
	}
	if !errors.Is(err, errEnded) && !errors.Is(err, sftp.ErrSSHFxConnectionLost) {
		c.abort(errGarbled)
	}
	<-c.done
	return c.reason // it does not change any more
}

// open opens a file, or a directory where the server allows it.
func (c *conn) open(path string, flags int) (*sftp.File, error) {
	f, err := c.client.OpenFile(path, flags)
	if err == nil && f == nil { // the answer was "OK" instead of a handle
		err = errGarbled
	}
	return f, c.check(err)
}

// attributes returns those that the client was told with info and err.
func (c *conn) attributes(info os.FileInfo, err error) (*sftp.FileStat, error) {
	if err := c.check(err); err != nil {
		return nil, err
	}
	if info != nil {
		if a, ok := info.Sys().(*sftp.FileStat); ok && a != nil {
			return a, nil
		}
	}
	return nil, c.check(errGarbled) // the answer was "OK" instead of attributes
}

// readDir reads a directory.
func (c *conn) readDir(ctx context.Context, dir string) ([]os.FileInfo, error) {
	if c.names.Load() > c.maxNames/4 {
		c.listing.Lock()
		c.names.Store(0)
		c.listing.Unlock()
	}
	c.listing.RLock()
	defer c.listing.RUnlock()
	entries, err := c.client.ReadDirContext(ctx, dir)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return entries, c.check(err)
}

// close ends the connection when its calls have ended, or by force when that takes long, and waits until nothing is
// left of it. OpenSSH's server leaves undone what it has read when its input ends, so nothing may be in flight then.
func (c *conn) close() {
	unwilling := time.AfterFunc(grace, func() { c.abort(errClosed) })
	defer unwilling.Stop()
	c.mu.Lock()
	c.closing = true
	c.signalIdle()
	c.mu.Unlock()
	<-c.idle
	c.ssh.in.Close()
	<-c.done
}
