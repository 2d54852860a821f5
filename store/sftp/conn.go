package sftp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"cairn/store"
)

// conn is an SFTP session over an ssh of its own. Requests of many calls are under way on it at once, and the
// server answers them in any order. Safe for concurrent use. A conn that has failed stays so.
type conn struct {
	ssh        *process
	patience   time.Duration
	extensions map[string]string // as the server offers them
	out        chan packet
	posted     chan struct{} // has one thing when something is in behind
	settled    chan struct{} // has one thing when nothing is pending
	closing    chan struct{} // closed when it is to end by itself
	done       chan struct{} // closed when it has failed
	work       sync.WaitGroup

	mu       sync.Mutex // guards all below
	next     uint32
	pending  map[uint32]*request // sent, and not answered
	behind   []packet            // to be sent behind all that is in out
	moved    time.Time           // when a packet last went either way
	watching bool                // watch will fire
	watch    *time.Timer
	err      error // why it has failed
}

// request is one that was sent. Its answer fits into the channel, so that nobody has to wait for it.
type request struct {
	answer    chan answer
	abandoned bool // nobody waits any more
}

const (
	queued     = 64 // packets that wait for the pipe to ssh
	pipeBuffer = 64 << 10
)

// errStalled says that the server does not answer; errClosed that we do not want it to.
var (
	errStalled = errors.New("the server does not answer")
	errClosed  = errors.New("closed")
)

// dial starts an ssh and greets the server. ctx is the bucket's life.
func dial(ctx context.Context, at Location, o Options) (*conn, error) {
	p, err := startProcess(o.Program, sshArgs(at, o))
	if err != nil {
		return nil, explainStart(o.Program, err)
	}
	in := bufio.NewReaderSize(p.out, pipeBuffer)
	extensions, err := greet(ctx, p, in, o.Patience)
	if err != nil {
		p.end()
		return nil, explainConnect(p.words.String(), err)
	}
	c := &conn{
		ssh: p, patience: o.Patience, extensions: extensions,
		out: make(chan packet, queued), posted: make(chan struct{}, 1), settled: make(chan struct{}, 1),
		closing: make(chan struct{}), done: make(chan struct{}),
		pending: map[uint32]*request{},
	}
	c.mu.Lock() // nothing else orders this before look
	c.watch = time.AfterFunc(o.Patience, c.look)
	c.watching = true
	c.mu.Unlock()
	c.work.Go(c.send)
	c.work.Go(func() { c.receive(in) })
	return c, nil
}

// greet exchanges versions. ssh has its own limit for connecting, and as long again to get in.
func greet(ctx context.Context, p *process, in io.Reader, patience time.Duration) (map[string]string, error) {
	slow := time.AfterFunc(2*patience, p.kill)
	defer slow.Stop()
	defer context.AfterFunc(ctx, p.kill)()
	_, err := p.in.Write(newPacket(typeInit, 0).numbered(version))
	if err == nil {
		var a answer
		if a, err = readAnswer(in); err == nil {
			return a.extensions()
		}
	}
	switch {
	case ctx.Err() != nil:
		return nil, errClosed
	case !slow.Stop():
		return nil, errStalled
	case errors.Is(err, errGarbled):
		return nil, err
	}
	return nil, errors.New("no connection")
}

// offers says whether the server has an extension in the version that we know.
func (c *conn) offers(extension string) bool { return c.extensions[extension] == "1" }

// start sends a request. It waits only for room in the queue.
func (c *conn) start(ctx context.Context, p packet) (*request, error) {
	r := &request{answer: make(chan answer, 1)}
	number := c.register(r)
	select {
	case c.out <- p.numbered(number):
		return r, nil
	case <-ctx.Done():
		c.forget(number)
		return nil, ctx.Err()
	case <-c.done:
		return nil, c.failure()
	}
}

// post sends a request whose answer does not matter, behind all that was sent, and never waits.
func (c *conn) post(p packet) {
	p = p.numbered(c.register(&request{answer: make(chan answer, 1), abandoned: true}))
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.behind) == 0 {
		select {
		case c.out <- p:
			return
		default:
		}
	}
	c.behind = append(c.behind, p)
	signal(c.posted)
}

// signal leaves word in a channel that has room for one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (c *conn) register(r *request) (number uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next++
	if len(c.pending) == 0 {
		c.moved = time.Now()
	}
	c.pending[c.next] = r
	if !c.watching {
		c.watching = true
		c.watch.Reset(c.patience)
	}
	return c.next
}

func (c *conn) forget(number uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.take(number)
}

// take takes a request out of those that are pending. The caller holds mu.
func (c *conn) take(number uint32) (r *request, known bool) {
	r, known = c.pending[number]
	delete(c.pending, number)
	if len(c.pending) == 0 {
		signal(c.settled)
	}
	return r, known
}

// wait is the answer to a request. After an error, a handle that the server opens still is closed.
func (c *conn) wait(ctx context.Context, r *request) (answer, error) {
	select {
	case a := <-r.answer:
		return a, nil
	case <-ctx.Done():
		c.abandon(r)
		return answer{}, ctx.Err()
	case <-c.done:
	}
	select {
	case a := <-r.answer: // it came before the end
		return a, nil
	default:
		return answer{}, c.failure()
	}
}

// ask sends a request and waits for its answer.
func (c *conn) ask(ctx context.Context, p packet) (answer, error) {
	r, err := c.start(ctx, p)
	if err != nil {
		return answer{}, err
	}
	return c.wait(ctx, r)
}

// do asks for what has no answer but its status.
func (c *conn) do(ctx context.Context, p packet) error {
	a, err := c.ask(ctx, p)
	if err != nil {
		return err
	}
	return a.status()
}

// attributes asks for those of a file.
func (c *conn) attributes(ctx context.Context, p packet) (attributes, error) {
	a, err := c.ask(ctx, p)
	if err != nil {
		return attributes{}, err
	}
	return a.attributes()
}

// open asks for a handle.
func (c *conn) open(ctx context.Context, p packet) (handle string, err error) {
	a, err := c.ask(ctx, p)
	if err != nil {
		return "", err
	}
	return a.handle()
}

func (c *conn) closeHandle(handle string) { c.post(pathPacket(typeClose, handle)) }

func (c *conn) abandon(r *request) {
	c.mu.Lock()
	r.abandoned = true
	c.mu.Unlock()
	select {
	case a := <-r.answer:
		c.discard(a)
	default:
	}
}

// discard closes what an answer opened for nobody.
func (c *conn) discard(a answer) {
	if handle, err := a.handle(); err == nil {
		c.closeHandle(handle)
	}
}

// send writes packets, several with one call where they wait, until the connection ends. One that is to end by
// itself gets what waits and, when that is answered, the end of its input: OpenSSH's server leaves undone what it
// has read when it sees that.
func (c *conn) send() {
	out := bufio.NewWriterSize(c.ssh.in, pipeBuffer)
	for {
		select {
		case p := <-c.out:
			if !c.sendOne(out, p) {
				return
			}
		case <-c.posted:
			if !c.sendPosted(out) {
				return
			}
		case <-c.closing:
			if c.sendRest(out) {
				c.ssh.in.Close()
			}
			return
		case <-c.done:
			return
		}
	}
}

// sendRest sends what waits until all is answered.
func (c *conn) sendRest(out *bufio.Writer) bool {
	for c.sendPosted(out) {
		if c.idle() {
			return true
		}
		select {
		case p := <-c.out:
			if !c.sendOne(out, p) {
				return false
			}
		case <-c.posted:
		case <-c.settled:
		case <-c.done:
			return false
		}
	}
	return false
}

func (c *conn) idle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.pending) == 0
}

// sendPosted sends what was posted, and before it what was in the queue by then.
func (c *conn) sendPosted(out *bufio.Writer) bool {
	c.mu.Lock()
	behind := c.behind
	c.behind = nil
	c.mu.Unlock()
	for range len(c.out) {
		if !c.sendOne(out, <-c.out) {
			return false
		}
	}
	for _, p := range behind {
		if !c.sendOne(out, p) {
			return false
		}
	}
	return true
}

// sendOne fails when ssh has ended. receive notices that too, and says why.
func (c *conn) sendOne(out *bufio.Writer, p packet) bool {
	_, err := out.Write(p)
	if err == nil && len(c.out) == 0 {
		err = out.Flush()
	}
	c.touch()
	return err == nil
}

func (c *conn) touch() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.moved = time.Now()
}

// receive hands out answers until there are no more, and is the last to leave.
func (c *conn) receive(in io.Reader) {
	for {
		a, err := readAnswer(in)
		if err == nil {
			err = c.deliver(a)
		}
		if err != nil {
			c.ssh.end()
			c.fail(c.lost(err))
			return
		}
	}
}

func (c *conn) deliver(a answer) error {
	c.mu.Lock()
	c.moved = time.Now()
	r, known := c.take(a.number)
	wanted := known && !r.abandoned
	if wanted {
		r.answer <- a
	}
	c.mu.Unlock()
	if !known {
		return errGarbled
	}
	if !wanted {
		c.discard(a)
	}
	return nil
}

// lost says how the connection ended.
func (c *conn) lost(err error) error {
	select {
	case <-c.closing:
		return errClosed
	default:
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("the connection ended")
	}
	if words := c.ssh.words.String(); words != "" {
		return fmt.Errorf("%w: ssh says: %s", err, words)
	}
	return err
}

// fail ends the connection; only the first reason counts.
func (c *conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	c.watch.Stop()
	close(c.done)
}

// failure is what callers get of a connection that has failed.
func (c *conn) failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if errors.Is(c.err, errClosed) || errors.Is(c.err, errGarbled) {
		return c.err
	}
	return &store.UnavailableError{Err: c.err}
}

func (c *conn) failed() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// look is called when the patience may be at its end. Nothing is due while no request is under way.
func (c *conn) look() {
	c.mu.Lock()
	still := time.Since(c.moved)
	switch {
	case len(c.pending) == 0:
		c.watching = false
	case still < c.patience:
		c.watch.Reset(c.patience - still)
	default:
		defer c.abort(errStalled)
	}
	c.mu.Unlock()
}

// abort ends the connection by force.
func (c *conn) abort(err error) {
	c.fail(err)
	c.ssh.kill()
}

// close ends the connection when what was asked and posted is done, or by force when that takes long, and waits until
// nothing is left of it.
func (c *conn) close() {
	close(c.closing)
	unwilling := time.AfterFunc(grace, c.ssh.kill)
	defer unwilling.Stop()
	c.work.Wait()
}
