package netlab

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Fate is what becomes of a connection. The zero value is a good one.
type Fate struct {
	kind  fateKind
	after int64
}

type fateKind int

const (
	passes fateKind = iota
	refused
	isReset
	swallowed
)

// Refused is a connection that is reset at once.
func Refused() Fate { return Fate{kind: refused} }

// ResetAfter is a connection that is reset when the server has sent so many bytes: within a body, if that is more
// than a header.
func ResetAfter(bytes int64) Fate { return Fate{kind: isReset, after: max(bytes, 1)} }

// BlackHole is a connection that is accepted, and that nothing ever comes back on.
func BlackHole() Fate { return Fate{kind: swallowed} }

// Every gives every n-th connection one of the fates, in turn, and lets the others pass.
func Every(n int64, fates ...Fate) func(connection int64) Fate {
	return func(connection int64) Fate {
		if connection%n != 0 {
			return Fate{}
		}
		return fates[(connection/n-1)%int64(len(fates))]
	}
}

// Counts say what a proxy has seen.
type Counts struct {
	Connections int64            `json:"connections"` // accepted
	Lost        int64            `json:"lost"`        // of them, by their fate
	Requests    int64            `json:"requests"`    // of HTTP/1.1
	Methods     map[string]int64 `json:"methods"`     // the same by method
	Up          int64            `json:"bytes_up"`    // bytes that the link carried to the server
	Down        int64            `json:"bytes_down"`  // and from it
}

// Proxy is a link before a server. Its connections share the link's rate in turns, each way; a connection that
// has more to send than its share is slowed down like one of TCP, and does not make others wait longer than a turn of
// everybody takes. A new connection costs a round trip before its first byte, as it does with TCP. Headers of
// TCP and IP, slow start and lost packets are not modelled: the rate is that of the bytes that programs see.
type Proxy struct {
	target   string
	listener *net.TCPListener
	fate     func(connection int64) Fate
	up, down *direction
	buffers  buffers
	cancel   context.CancelFunc
	running  sync.WaitGroup

	connections, lost atomic.Int64

	mu       sync.Mutex // guards what follows
	open     map[*net.TCPConn]bool
	requests map[string]int64 // by method
}

// NewProxy stands before the server at target, a TCP address, until it is closed. fate tells what becomes of each
// connection, which are counted from 1; nil lets all pass.
func NewProxy(target string, l Link, fate func(connection int64) Fate) (*Proxy, error) {
	listener, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	if fate == nil {
		fate = func(int64) Fate { return Fate{} }
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &Proxy{target: target, listener: listener, fate: fate, up: newDirection(l), down: newDirection(l),
		cancel: cancel, open: map[*net.TCPConn]bool{}, requests: map[string]int64{}}
	p.running.Go(func() { p.up.run(ctx) })
	p.running.Go(func() { p.down.run(ctx) })
	p.running.Go(func() { p.accept(ctx) })
	return p, nil
}

// Addr is where the proxy listens.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Close ends all connections, and returns when nothing of the proxy runs any more.
func (p *Proxy) Close() error {
	err := p.listener.Close()
	p.cancel()
	p.Sever()
	p.running.Wait()
	return err
}

// Set changes the link. What is under way arrives as it would have.
func (p *Proxy) Set(l Link) {
	p.up.set(l)
	p.down.set(l)
}

// Cut pulls the cable: connections stay, new ones are accepted by the system, and nothing moves.
func (p *Proxy) Cut() {
	p.up.cut()
	p.down.cut()
}

// Restore ends what Cut did. What was under way arrives now.
func (p *Proxy) Restore() {
	p.up.restore()
	p.down.restore()
}

// Sever resets all connections that there are.
func (p *Proxy) Sever() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.open {
		abort(c)
	}
}

// Counts is what was seen so far.
func (p *Proxy) Counts() Counts {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := Counts{Connections: p.connections.Load(), Lost: p.lost.Load(), Methods: map[string]int64{},
		Up: p.up.carried.Load(), Down: p.down.carried.Load()}
	for method, n := range p.requests {
		c.Methods[method] = n
		c.Requests += n
	}
	return c
}

func (p *Proxy) accept(ctx context.Context) {
	for {
		conn, err := p.listener.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // such as too many open files: they will be fewer
			_ = sleepUntil(ctx, time.Now().Add(10*time.Millisecond))
			continue
		}
		fate := p.fate(p.connections.Add(1))
		if fate.kind != passes {
			p.lost.Add(1)
		}
		p.running.Go(func() { p.connect(ctx, conn, fate) })
	}
}

// register has a connection ended with the proxy. The function that it returns closes the connection.
func (p *Proxy) register(ctx context.Context, c *net.TCPConn) (close func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open[c] = true
	if ctx.Err() != nil { // Close may have gone through them already
		_ = c.Close()
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.open, c)
		_ = c.Close()
	}
}

// connect does with a connection what its fate is.
func (p *Proxy) connect(ctx context.Context, client *net.TCPConn, fate Fate) {
	defer p.register(ctx, client)()
	switch fate.kind {
	case refused:
		abort(client)
		return
	case swallowed:
		swallow(client)
		return
	}
	handshake := time.Now().Add(p.up.get().RTT)
	if errors.Join(sleepUntil(ctx, handshake), p.up.awaitUp(ctx)) != nil {
		return
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", p.target)
	if err != nil {
		abort(client)
		return
	}
	server := conn.(*net.TCPConn)
	defer p.register(ctx, server)()
	p.carry(ctx, client, server, fate)
}

// swallow takes what is sent until the client gives up.
func swallow(c *net.TCPConn) {
	p := make([]byte, 4<<10)
	for {
		if _, err := c.Read(p); err != nil {
			return
		}
	}
}

// carry brings bytes both ways until both ends are closed.
func (p *Proxy) carry(ctx context.Context, client, server *net.TCPConn, fate Fate) {
	up := newFlow(p.up, client, server, &p.buffers)
	down := newFlow(p.down, server, client, &p.buffers)
	requests := scanner{found: p.count}
	up.seen = requests.scan
	if fate.kind == isReset {
		down.lossAt = fate.after
	}
	ctx, fail := context.WithCancel(ctx)
	defer fail()
	var flows sync.WaitGroup
	for _, f := range []*flow{up, down} {
		f.fail = fail
		flows.Go(func() { f.send(ctx) })
		flows.Go(func() { f.receive(ctx) })
	}
	flows.Wait()
}

func (p *Proxy) count(method string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests[method]++
}
