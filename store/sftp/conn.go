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

// conn is an SFTP session over an ssh process of its own. It carries the requests of many calls at
// once. It is safe for concurrent use. A failed conn stays failed.
type conn struct {
	client   *sftp.Client
	ssh      *process
	patience time.Duration
	done     chan struct{} // closed when the conn has failed and ssh has ended

	listing   sync.RWMutex // each readDir holds a read lock
	nameBytes atomic.Int64 // bytes of names received since the last time without a running readDir
	maxNames  int64

	mu           sync.Mutex // guards all below
	calls        int        // in flight, including calls whose caller has returned
	lastActivity time.Time  // when bytes were last sent or received
	stallTimer   *time.Timer
	reason       error // why the conn has failed
	closing      bool
	idle         chan struct{} // buffers one signal: closing is set and calls is 0
}

const (
	pipeBuffer = 64 << 10
	maxPacket  = 256 << 10 // the limit of OpenSSH and of the client
	packetData = 103       // the types of the SFTP packets that answerReader checks
	packetName = 104
)

// maxNames limits the bytes of names in memory, since the client collects all names of a directory.
// A conn fails when its running listings hold more. Above a fourth of the limit, a new listing
// waits until the running ones have ended.
const maxNames = 64 << 20

var (
	errStalled = errors.New("the server does not answer")
	errClosed  = errors.New("closed")
	errEnded   = errors.New("the connection ended")
	errGarbled = errors.New("the server's answer is not SFTP (does its shell print something at login?)")
	errNames   = fmt.Errorf("a directory has more than %d MiB of names", maxNames>>20)
)

// dial starts an ssh process and an SFTP session over it. ctx lasts as long as the bucket.
func dial(ctx context.Context, at Location, o Options) (*conn, error) {
	p, err := startProcess(at, o)
	if err != nil {
		return nil, explainStart(o.Program, err)
	}
	c, err := newConn(ctx, p, o.Patience)
	if err != nil {
		p.stop()
		return nil, explainConnect(p.stderr.String(), err)
	}
	return c, nil
}

// newConn begins a session. It allows twice the patience: ssh may take it once to connect and once
// to log in.
func newConn(ctx context.Context, p *process, patience time.Duration) (*conn, error) {
	c := &conn{ssh: p, patience: patience, maxNames: maxNames, done: make(chan struct{}), idle: make(chan struct{}, 1)}
	slow := time.AfterFunc(2*patience, p.kill)
	defer slow.Stop()
	defer context.AfterFunc(ctx, p.kill)()
	client, err := sftp.NewClientPipe(&answerReader{conn: c, in: bufio.NewReaderSize(p.out, pipeBuffer)}, requestWriter{c},
		sftp.UseConcurrentWrites(true))
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return nil, errClosed
	case !slow.Stop():
		return nil, errStalled
	case errors.Is(c.reason, errEnded) || errors.Is(err, errEnded): // the reader found it, or the writer before
		return nil, errors.New("no connection")
	default:
		return nil, errGarbled
	}
	c.client = client
	c.mu.Lock()
	c.stallTimer = time.AfterFunc(patience, c.abortIfStalled)
	c.mu.Unlock()
	go c.awaitEnd()
	return c, nil
}

// requestWriter writes the client's requests to ssh.
type requestWriter struct{ *conn }

// Write implements io.Writer. Its error is errEnded; answerReader finds the reason.
func (r requestWriter) Write(p []byte) (int, error) {
	n, err := r.ssh.in.Write(p)
	r.noteActivity()
	if err != nil {
		err = errEnded
	}
	return n, err
}

// Close implements io.Closer.
func (r requestWriter) Close() error { return r.ssh.in.Close() }

// answerReader passes ssh's output to the client. It refuses two things that the client would
// accept: empty data packets, which the client requests again endlessly, and an unlimited amount of
// names.
type answerReader struct {
	*conn
	in     *bufio.Reader
	unread int // unread bytes of the current packet
}

// Read implements io.Reader.
func (a *answerReader) Read(p []byte) (int, error) {
	if a.unread == 0 {
		if err := a.readHeader(); err != nil {
			a.closeRequests(err)
			return 0, err
		}
	}
	n, err := a.in.Read(p[:min(len(p), a.unread)])
	a.unread -= n
	a.noteActivity()
	if err != nil {
		a.closeRequests(errEnded)
	}
	return n, err
}

// closeRequests records the reason and closes the pipe to ssh. A request that blocks on a full pipe
// thus ends, which the client waits for.
func (a *answerReader) closeRequests(reason error) {
	a.setReason(reason)
	a.ssh.in.Close()
}

// readHeader checks the head of the next packet: length, type, number, and a count of bytes or
// names.
func (a *answerReader) readHeader() error {
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
		if a.nameBytes.Add(int64(length)) > a.maxNames {
			return errNames
		}
	}
	a.unread = 4 + length
	return nil
}

// hasExtension reports whether the server has an extension in version 1, the supported one.
func (c *conn) hasExtension(extension string) bool {
	version, _ := c.client.HasExtension(extension)
	return version == "1"
}

// beginCall records the start of a call; endCall records its end.
func (c *conn) beginCall() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.calls == 0 {
		c.lastActivity = time.Now()
	}
	c.calls++
}

func (c *conn) endCall() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls--
	c.signalIdle()
}

// signalIdle signals close when the last call has ended. The caller holds mu.
func (c *conn) signalIdle() {
	if c.closing && c.calls == 0 {
		select {
		case c.idle <- struct{}{}:
		default:
		}
	}
}

func (c *conn) noteActivity() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastActivity = time.Now()
}

// abortIfStalled aborts a connection that was silent for the patience while a call was in flight.
func (c *conn) abortIfStalled() {
	silent := time.Duration(0)
	c.mu.Lock()
	if c.calls > 0 {
		silent = time.Since(c.lastActivity)
	}
	if c.reason == nil && silent < c.patience {
		c.stallTimer.Reset(c.patience - silent)
	}
	c.mu.Unlock()
	if silent >= c.patience {
		c.abort(errStalled)
	}
}

// abort ends the connection by killing ssh.
func (c *conn) abort(reason error) {
	c.setReason(reason)
	c.ssh.in.Close()
	c.ssh.kill()
}

// setReason records the reason for the connection's end, unless there already is one.
func (c *conn) setReason(reason error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reason == nil {
		c.reason = reason
	}
}

// awaitEnd waits until the client has ended, ends ssh, and sets the final reason.
func (c *conn) awaitEnd() {
	_ = c.client.Wait() // answerReader has recorded the reason
	c.ssh.stop()
	c.setReason(errEnded)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stallTimer.Stop()
	words := c.ssh.stderr.String()
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

// status is a server's answer to a request that it refuses or cannot fulfil. It wraps the client's
// error value for its code.
type status struct {
	code error
	text string
}

func (s *status) Error() string { return s.text }
func (s *status) Unwrap() error { return s.code }

// convertError converts an error of the client. It returns a *status, fs.ErrNotExist or
// fs.ErrPermission, to which the client converts two of the codes, or the reason for the
// connection's end. Any other error means that the answer is not SFTP, and convertError aborts the
// connection.
func (c *conn) convertError(err error) error {
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
	return c.reason // final, since done is closed
}

// openFile opens a file, or a directory if the server allows that.
func (c *conn) openFile(path string, flags int) (*sftp.File, error) {
	f, err := c.client.OpenFile(path, flags)
	if err == nil && f == nil { // the answer was "OK" instead of a handle
		err = errGarbled
	}
	return f, c.convertError(err)
}

// attributes returns the attributes in info, or converts err with convertError.
func (c *conn) attributes(info os.FileInfo, err error) (*sftp.FileStat, error) {
	if err := c.convertError(err); err != nil {
		return nil, err
	}
	if info != nil {
		if a, ok := info.Sys().(*sftp.FileStat); ok && a != nil {
			return a, nil
		}
	}
	return nil, c.convertError(errGarbled) // the answer was "OK" instead of attributes
}

// readDir reads a directory.
func (c *conn) readDir(ctx context.Context, dir string) ([]os.FileInfo, error) {
	if c.nameBytes.Load() > c.maxNames/4 {
		c.listing.Lock()
		c.nameBytes.Store(0)
		c.listing.Unlock()
	}
	c.listing.RLock()
	defer c.listing.RUnlock()
	entries, err := c.client.ReadDirContext(ctx, dir)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return entries, c.convertError(err)
}

// close ends the connection after its calls have ended, or kills it after the grace period, and
// waits until it has ended. No call may be in flight when ssh's input ends: OpenSSH's server drops
// the requests that it has read but not yet done.
func (c *conn) close() {
	killTimer := time.AfterFunc(grace, func() { c.abort(errClosed) })
	defer killTimer.Stop()
	c.mu.Lock()
	c.closing = true
	c.signalIdle()
	c.mu.Unlock()
	<-c.idle
	c.ssh.in.Close()
	<-c.done
}
