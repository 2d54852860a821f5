package netlab

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Fate determines how a connection ends. The zero value is an undisturbed connection.
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

// Refused returns the fate of a connection that is reset at once.
func Refused() Fate { return Fate{kind: refused} }

// ResetAfter returns the fate of a connection that is reset when the server has sent that many bytes. A number larger
// than a header resets it within a body.
func ResetAfter(bytes int64) Fate { return Fate{kind: isReset, after: max(bytes, 1)} }

// BlackHole returns the fate of a connection that is accepted and never gets an answer.
func BlackHole() Fate { return Fate{kind: swallowed} }

// Every gives every n-th connection one of the fates, in turn. Other connections are undisturbed.
func Every(n int64, fates ...Fate) func(connection int64) Fate {
	return func(connection int64) Fate {
		if connection%n != 0 {
			return Fate{}
		}
		return fates[(connection/n-1)%int64(len(fates))]
	}
}

// Counts are the connections, requests and bytes of a proxy.
type Counts struct {
	Connections int64            `json:"connections"` // accepted connections
	Lost        int64            `json:"lost"`        // connections with a fate
	Requests    int64            `json:"requests"`    // HTTP/1.1 requests
	Methods     map[string]int64 `json:"methods"`     // requests by method
	Up          int64            `json:"bytes_up"`    // bytes to the server
	Down        int64            `json:"bytes_down"`  // bytes from the server
}

// Proxy is a link in front of a server. Its connections take turns at the link's rate in each direction. A
// connection that has more to send than its share is slowed down as by TCP, and delays others by at most one
// turn of every connection. A new connection takes one RTT before its first byte, as in TCP. The headers of TCP
// and IP, slow start and lost packets are not modelled: the rate is that of the payload.
type Proxy struct {
	target   string
	listener *net.TCPListener
	fate     func(connection int64) Fate
	up, down *direction
	buffers  buffers
	cancel   context.CancelFunc
	running  sync.WaitGroup

	connections, lost atomic.Int64

	mu       sync.Mutex // guards the fields below
	open     map[*net.TCPConn]bool
	requests map[string]int64 // by method
}

// NewProxy starts a proxy in front of the server at target, a TCP address. fate returns the fate of each connection,
// counted from 1; nil leaves all undisturbed. The caller must call Close.
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
	p.running.Go(func() { p.acceptAll(ctx) })
	return p, nil
}

// Addr returns the proxy's address.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Close ends all connections, and returns when all goroutines of the proxy have ended.
func (p *Proxy) Close() error {
	err := p.listener.Close()
	p.cancel()
	p.Sever()
	p.running.Wait()
	return err
}

// Set changes the link. Parts in flight arrive as before.
func (p *Proxy) Set(l Link) {
	p.up.setLink(l)
	p.down.setLink(l)
}

// Cut stops all transfers. Connections stay open, and the system accepts new ones.
func (p *Proxy) Cut() {
	p.up.cut()
	p.down.cut()
}

// Restore ends Cut. Parts in flight arrive now.
func (p *Proxy) Restore() {
	p.up.restore()
	p.down.restore()
}

// Sever resets all open connections.
func (p *Proxy) Sever() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.open {
		abort(c)
	}
}

// Counts returns the counts so far.
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

func (p *Proxy) acceptAll(ctx context.Context) {
	for {
		conn, err := p.listener.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // such as too many open files, which is temporary
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

// register makes Close close a connection. The returned function closes it earlier.
func (p *Proxy) register(ctx context.Context, c *net.TCPConn) (close func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open[c] = true
	if ctx.Err() != nil { // Close may have closed the others already
		_ = c.Close()
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.open, c)
		_ = c.Close()
	}
}

// connect treats a connection according to its fate.
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
	handshake := time.Now().Add(p.up.getLink().RTT)
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
	p.forward(ctx, client, server, fate)
}

// swallow reads until the client closes the connection.
func swallow(c *net.TCPConn) {
	p := make([]byte, 4<<10)
	for {
		if _, err := c.Read(p); err != nil {
			return
		}
	}
}

// forward copies bytes in both directions until both ends are closed.
func (p *Proxy) forward(ctx context.Context, client, server *net.TCPConn, fate Fate) {
	up := newFlow(p.up, client, server, &p.buffers)
	down := newFlow(p.down, server, client, &p.buffers)
	requests := scanner{found: p.countRequest}
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

func (p *Proxy) countRequest(method string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests[method]++
}
