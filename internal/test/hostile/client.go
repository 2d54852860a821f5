package main

import (
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"cairn/nbd/nbdtest"
)

// attacker is a hostile NBD client.
type attacker struct {
	addresses []string
	exports   []string
	seed      uint64
	*tally
}

// run attacks until ctx ends. Each worker has a seed of its own, so its attacks are the same in each run.
func (a *attacker) run(ctx context.Context, workers int) {
	var group sync.WaitGroup
	for n := range workers {
		group.Go(func() {
			chance := rand.New(rand.NewPCG(a.seed, uint64(n)))
			for ctx.Err() == nil {
				a.attackOnce(ctx, chance)
				pause(ctx, time.Duration(chance.IntN(20))*time.Millisecond)
			}
		})
	}
	group.Wait()
}

func (a *attacker) attackOnce(ctx context.Context, chance *rand.Rand) {
	attacks := clientAttacks()
	attack := attacks[chance.IntN(len(attacks))]
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := &peer{Rand: chance, attacker: a, ctx: ctx}
	defer p.hangUp()
	if p.dial() != nil {
		a.addKind("refused")
		return
	}
	a.addKind(attack.name)
	attack.do(p)
}

// peer is one attack, with its connections. All errors are ignored: the server may close a connection at any time.
type peer struct {
	*rand.Rand
	*attacker
	ctx   context.Context
	conn  net.Conn
	conns []net.Conn
}

// dial connects to one of the addresses, from a random address of this machine. The last connection is p.conn.
func (p *peer) dial() error {
	network, address, _ := strings.Cut(p.addresses[p.IntN(len(p.addresses))], ":")
	d := net.Dialer{Timeout: 5 * time.Second}
	if host, _, _ := net.SplitHostPort(address); network == "tcp" && host == "127.0.0.1" {
		d.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(1+p.IntN(6)))}
	}
	if network == "tcp" && p.chance(0.2) { // a small window
		d.Control = func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) {
				_ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 2048)
			})
		}
	}
	conn, err := d.DialContext(p.ctx, network, address)
	if err != nil {
		return err
	}
	context.AfterFunc(p.ctx, func() { _ = conn.Close() })
	p.conn, p.conns = conn, append(p.conns, conn)
	p.add(1, 0, 0)
	return nil
}

// hangUp ends all connections, half of them with a reset.
func (p *peer) hangUp() {
	for _, c := range p.conns {
		if tcp, is := c.(*net.TCPConn); is && p.chance(0.5) {
			_ = tcp.SetLinger(0)
		}
		_ = c.Close()
	}
}

func (p *peer) chance(share float64) bool { return p.Float64() < share }

// send sends bytes, for at most some seconds: the server need not read them.
func (p *peer) send(data []byte) bool {
	_ = p.conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
	_, err := p.conn.Write(data)
	return err == nil
}

// drip sends the bytes one by one.
func (p *peer) drip(data []byte, interval time.Duration) {
	for i := range data {
		if p.ctx.Err() != nil || !p.send(data[i:i+1]) {
			return
		}
		pause(p.ctx, interval)
	}
}

// collect discards what the server sends until it is silent for a time, or closes the connection.
func (p *peer) collect(silence time.Duration) {
	buffer := make([]byte, 256<<10)
	for p.ctx.Err() == nil {
		_ = p.conn.SetReadDeadline(time.Now().Add(silence))
		n, err := p.conn.Read(buffer)
		p.add(0, 0, int64(n))
		if err != nil {
			return
		}
	}
}

// hold keeps the connection for a time up to max, usually a short one.
func (p *peer) hold(max time.Duration) {
	share := p.Float64()
	pause(p.ctx, time.Duration(share*share*share*float64(max)))
}

func (p *peer) bytes(n int) []byte {
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(p.Uint32())
	}
	return data
}

// name returns the name of an export, usually of an existing one.
func (p *peer) name() string {
	switch p.IntN(8) {
	case 0:
		return strings.Repeat("n", 4096)
	case 1:
		return "x\ncairn: error: forged\x1b[2J\u202e"
	case 2:
		return string(p.bytes(p.IntN(64)))
	}
	return p.exports[p.IntN(len(p.exports))]
}

// option sends an option, and greets the server before the first one.
func (p *peer) option(id uint32, data []byte) bool {
	p.add(0, 1, 0)
	return p.send(nbdtest.OptionBytes(id, data))
}

func (p *peer) greet() bool { return p.send([]byte{0, 0, 0, 3}) }

// choose begins a transmission with an existing export, and reports whether the server agreed.
func (p *peer) choose() bool {
	if !p.greet() {
		return false
	}
	if p.chance(0.5) {
		p.option(nbdtest.OptStructuredReply, nil)
	}
	if p.chance(0.2) {
		data := binary.BigEndian.AppendUint32(nbdtest.AppendString(nil, p.exports[0]), 1)
		p.option(nbdtest.OptSetMetaContext, nbdtest.AppendString(data, "base:allocation"))
	}
	export := p.exports[0]
	if p.chance(0.5) {
		export = p.exports[p.IntN(len(p.exports))]
	}
	p.option(nbdtest.OptGo, nbdtest.InfoData(export))
	_ = p.conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, err := io.ReadFull(p.conn, make([]byte, 18+20)) // the greeting, and the head of a reply
	if err == nil {
		p.collect(20 * time.Millisecond)
	}
	return err == nil
}

// requestBytes returns a random request, most of them invalid.
func (p *peer) requestBytes() []byte {
	edges := []uint64{0, 1, 511, 512, 4096, 65536, 1 << 20, 32 << 20, 1<<32 - 1, 1 << 32, 1<<63 - 1, 1 << 63, 1<<64 - 1}
	q := nbdtest.Request{Command: uint16(p.IntN(9)), Offset: edges[p.IntN(len(edges))], Length: uint32(edges[p.IntN(9)])}
	if p.chance(0.5) { // a read that may be valid
		q.Command, q.Offset, q.Length = nbdtest.CmdRead, uint64(p.IntN(1<<20)), uint32(p.IntN(1<<18))
	}
	if p.chance(0.2) {
		q.Flags = uint16(p.Uint32())
	}
	if q.Command == nbdtest.CmdWrite && p.chance(0.9) { // usually with its data
		q.Length = uint32(p.IntN(1 << 16))
		q.Data = make([]byte, q.Length)
	}
	cookie := uint64(p.IntN(3)) // many are the same
	p.add(0, 1, 0)
	return nbdtest.RequestBytes(cookie, q)
}

// requests returns n requests of one kind.
func requests(n int, q nbdtest.Request) (all []byte) {
	for range n {
		all = append(all, nbdtest.RequestBytes(7, q)...)
	}
	return all
}
