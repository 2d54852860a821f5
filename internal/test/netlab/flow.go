package netlab

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// ending is the end of a flow.
type ending int

const (
	goesOn ending = iota
	closed        // the sender has closed this direction
	reset         // the connection was reset
)

const (
	// window limits the bytes of a flow in flight and unread by their receiver, as TCP does. A small part counts as
	// smallestWeight bytes, which limits the number of parts.
	window         = 4 << 20
	smallestWeight = 4 << 10
)

// flow is one direction of a connection.
type flow struct {
	over     *direction
	from, to *net.TCPConn
	seen     func([]byte) // receives the sent bytes; may be nil
	lossAt   int64        // the connection is reset after that many bytes; 0 means never
	room     *semaphore.Weighted
	arrived  chan part // parts to write; the window limits their number
	fail     func()    // ends the connection's other goroutines
	buffers  *buffers
}

func newFlow(over *direction, from, to *net.TCPConn, b *buffers) *flow {
	return &flow{over: over, from: from, to: to, buffers: b, room: semaphore.NewWeighted(window),
		arrived: make(chan part, window/smallestWeight+1)} // one for the end
}

func weight(data []byte) int64 { return weightOf(len(data)) }

func weightOf(n int) int64 {
	if n == 0 {
		return 0
	}
	return max(int64(n), smallestWeight)
}

// send reads from one end and sends parts over the link until the connection or the context ends, and then its end.
func (f *flow) send(ctx context.Context) {
	var sent int64
	var next time.Time // the time of this flow's next turn
	for {
		p, waited, err := f.readPart(ctx, next)
		if f.lossAt > 0 && sent+int64(len(p.data)) >= f.lossAt {
			p.data, err = p.data[:f.lossAt-sent], errLost
		}
		if sent += int64(len(p.data)); len(p.data) > 0 {
			next = f.over.send(p, waited).Add(-lead)
		}
		if err != nil {
			f.over.send(part{flow: f, end: endingOf(err)}, waited)
			return
		}
	}
}

// errLost ends a connection whose fate is to be reset.
var errLost = errors.New("connection lost")

func endingOf(err error) ending {
	if errors.Is(err, io.EOF) {
		return closed
	}
	return reset
}

// readPart waits for the flow's turn and for bytes. It reports whether the bytes were there before the turn began.
func (f *flow) readPart(ctx context.Context, turn time.Time) (p part, waiting bool, err error) {
	if err := errors.Join(sleepUntil(ctx, turn), f.over.awaitUp(ctx)); err != nil {
		return part{}, false, err
	}
	begun := time.Now()
	data := f.buffers.get(f.over.getLink().quantum())
	if err := f.room.Acquire(ctx, weight(data)); err != nil {
		return part{}, false, err
	}
	n, err := f.from.Read(data)
	if f.seen != nil {
		f.seen(data[:n])
	}
	f.room.Release(weight(data) - weightOf(n))
	atOnce := 300 * time.Microsecond
	if n == len(data) { // a full buffer was probably there before, and the proxy is late
		atOnce = 3 * time.Millisecond
	}
	return part{flow: f, data: data[:n]}, !turn.IsZero() && time.Since(begun) < atOnce, err
}

func sleepUntil(ctx context.Context, t time.Time) error {
	wait := time.Until(t)
	if wait <= 0 {
		return nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// receive writes arriving parts until the end of the flow arrives or the context ends.
func (f *flow) receive(ctx context.Context) {
	for {
		select {
		case p := <-f.arrived:
			if !f.writePart(p) {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// writePart reports whether more parts may follow. A failed write ends the connection.
func (f *flow) writePart(p part) bool {
	switch p.end {
	case closed:
		_ = f.to.CloseWrite() // fails if the connection has ended
		return false
	case reset:
		f.abort()
		return false
	}
	_, err := f.to.Write(p.data)
	f.room.Release(weight(p.data))
	f.buffers.put(p.data)
	if err != nil {
		f.abort()
	}
	return err == nil
}

// abort resets both connections.
func (f *flow) abort() {
	abort(f.to)
	abort(f.from)
	f.fail()
}

// abort ends a connection with a reset.
func abort(c *net.TCPConn) {
	_ = c.SetLinger(0) // fails if the connection has ended
	_ = c.Close()
}

// buffers is a pool of buffers. The zero value is ready to use.
type buffers struct{ pool sync.Pool }

func (b *buffers) get(n int) []byte {
	if p, ok := b.pool.Get().(*[]byte); ok && cap(*p) >= n {
		return (*p)[:n]
	}
	return make([]byte, n)
}

func (b *buffers) put(p []byte) { b.pool.Put(&p) }
