package nbdtest

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// Client is a connection to an NBD server. One goroutine may use its handshake methods. After Go or
// ExportName, its request methods are safe for concurrent use.
type Client struct {
	conn       net.Conn
	noZeroes   bool
	structured bool
	contexts   map[uint32]string // as set, by id

	info     Info
	received chan struct{} // closed when receive has ended
	sending  sync.Mutex    // held while a request is written

	mu     sync.Mutex // guards the fields below
	calls  map[uint64]*call
	cookie uint64
	err    error // set when the connection has failed
}

// Reply is the reply to a request.
type Reply struct {
	Data    []byte              // of a read
	Extents []Extent            // of base:allocation
	States  map[string][]Extent // of each selected context, by its name
	Chunks  int                 // the number of chunks in a structured reply, of all kinds
	Holes   int                 // the number of hole chunks among them
}

// Extent is one extent of a block status. The bits of base:allocation are hole 1 and zero 2.
type Extent struct {
	Length uint32
	State  uint32
}

// call is a request without a complete reply.
type call struct {
	Request
	reply    Reply
	covered  []span // the received ranges of a read
	contexts int    // the missing contexts of a block status
	failure  *Error
	done     chan struct{}
	err      error // of the connection; valid after done is closed
}

type span struct{ from, to uint64 }

func (c *Client) startReceiving(info Info) {
	c.info = info
	c.received = make(chan struct{})
	go c.receive()
}

// receive reads replies until the connection ends for any reason. Then all calls fail.
func (c *Client) receive() {
	defer close(c.received)
	in := bufio.NewReaderSize(c.conn, 64<<10)
	err := c.readReply(in)
	for err == nil {
		err = c.readReply(in)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = fmt.Errorf("the connection ended: %w", err)
	for _, call := range c.calls {
		call.err = c.err
		close(call.done)
	}
	c.calls = nil
	c.conn.Close()
}

// readReply reads one simple reply or one chunk.
func (c *Client) readReply(in *bufio.Reader) error {
	head, err := in.Peek(16)
	if err != nil {
		if len(head) > 0 {
			return io.ErrUnexpectedEOF
		}
		return err
	}
	switch magic := binary.BigEndian.Uint32(head); {
	case magic == magicSimple:
		return c.readSimple(in)
	case magic == magicChunk && c.structured:
		return c.readChunk(in)
	default:
		return fmt.Errorf("a reply starts with %#x", magic)
	}
}

// readFull fills p with the rest of a reply. The end of the connection is io.ErrUnexpectedEOF
// there.
func readFull(in io.Reader, p []byte) error {
	_, err := io.ReadFull(in, p)
	if err == io.EOF && len(p) > 0 {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (c *Client) findCall(cookie uint64) (*call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	call := c.calls[cookie]
	if call == nil {
		return nil, fmt.Errorf("a reply has the unknown cookie %d", cookie)
	}
	return call, nil
}

func (c *Client) finishCall(cookie uint64, call *call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.calls, cookie)
	close(call.done)
}

func (c *Client) readSimple(in *bufio.Reader) error {
	var head [16]byte
	if err := readFull(in, head[:]); err != nil {
		return err
	}
	code, cookie := binary.BigEndian.Uint32(head[4:]), binary.BigEndian.Uint64(head[8:])
	call, err := c.findCall(cookie)
	if err != nil {
		return err
	}
	switch {
	case c.structured && (call.Command == CmdRead || call.Command == CmdBlockStatus):
		return fmt.Errorf("a simple reply to command %d", call.Command)
	case call.reply.Chunks > 0:
		return errors.New("a simple reply within a structured one")
	case code != 0:
		call.failure = &Error{Code: code, Offset: -1}
	case call.Command == CmdRead:
		call.reply.Data = make([]byte, call.Length)
		if err := readFull(in, call.reply.Data); err != nil {
			return err
		}
	}
	c.finishCall(cookie, call)
	return nil
}

func (c *Client) readChunk(in *bufio.Reader) error {
	var head [20]byte
	if err := readFull(in, head[:]); err != nil {
		return err
	}
	flags, kind := binary.BigEndian.Uint16(head[4:]), binary.BigEndian.Uint16(head[6:])
	cookie, n := binary.BigEndian.Uint64(head[8:]), binary.BigEndian.Uint32(head[16:])
	call, err := c.findCall(cookie)
	if err != nil {
		return err
	}
	if flags&^1 != 0 || n > max(maxPayload+8, maxStatus) {
		return fmt.Errorf("a chunk has flags %#x and %d bytes", flags, n)
	}
	p := make([]byte, n)
	if err := readFull(in, p); err != nil {
		return err
	}
	call.reply.Chunks++
	if err := c.applyChunk(call, kind, p); err != nil {
		return err
	}
	if flags&1 == 0 {
		return nil
	}
	if err := call.checkComplete(); err != nil {
		return err
	}
	c.finishCall(cookie, call)
	return nil
}

func (c *Client) applyChunk(call *call, kind uint16, p []byte) error {
	switch {
	case kind == chunkNone && len(p) == 0:
		return nil
	case kind == chunkData && len(p) > 8 && call.Command == CmdRead:
		return call.storeData(binary.BigEndian.Uint64(p), p[8:])
	case kind == chunkHole && len(p) == 12 && call.Command == CmdRead:
		call.reply.Holes++
		return call.recordRange(binary.BigEndian.Uint64(p), uint64(binary.BigEndian.Uint32(p[8:])))
	case kind == chunkStatus && len(p) >= 12 && len(p)%8 == 4 && call.Command == CmdBlockStatus:
		return c.storeStatus(call, p)
	case (kind == chunkError || kind == chunkErrorOffset) && len(p) >= 6:
		return call.storeError(kind, p)
	}
	return fmt.Errorf("a chunk of kind %d with %d bytes for command %d", kind, len(p), call.Command)
}

func (c *call) storeData(offset uint64, p []byte) error {
	if err := c.recordRange(offset, uint64(len(p))); err != nil {
		return err
	}
	copy(c.reply.Data[offset-c.Offset:], p)
	return nil
}

// recordRange records a received range of a read. It returns an error unless the range is new and within
// the request.
func (c *call) recordRange(offset, length uint64) error {
	if c.reply.Data == nil {
		c.reply.Data = make([]byte, c.Length)
	}
	end, limit := offset+length, c.Offset+uint64(c.Length)
	if length == 0 || offset < c.Offset || end > limit || end < offset {
		return fmt.Errorf("a chunk for %d+%d in a request for %d+%d", offset, length, c.Offset, c.Length)
	}
	for _, s := range c.covered {
		if offset < s.to && s.from < end {
			return fmt.Errorf("the chunk for %d+%d overlaps another", offset, length)
		}
	}
	c.covered = append(c.covered, span{offset, end})
	if c.Flags&CmdFlagDF != 0 && len(c.covered) > 1 {
		return errors.New("a reply is in fragments, against the request's flag")
	}
	return nil
}

func (c *Client) storeStatus(call *call, p []byte) error {
	name, known := c.contexts[binary.BigEndian.Uint32(p)]
	if !known || call.reply.States[name] != nil {
		return errors.New("a block status of an unknown context, or a second one")
	}
	var extents []Extent
	var total uint64
	for p = p[4:]; len(p) > 0; p = p[8:] {
		e := Extent{binary.BigEndian.Uint32(p), binary.BigEndian.Uint32(p[4:])}
		if e.Length == 0 || total >= uint64(call.Length) {
			return errors.New("an empty extent, or one after the last")
		}
		total += uint64(e.Length)
		extents = append(extents, e)
	}
	one := call.Flags&CmdFlagReqOne != 0
	if one && (len(extents) > 1 || total > uint64(call.Length)) {
		return errors.New("more than the one requested extent")
	}
	if total > c.info.Size-call.Offset {
		return errors.New("a block status reaches beyond the end")
	}
	if call.reply.States == nil {
		call.reply.States = make(map[string][]Extent)
	}
	call.reply.States[name] = extents
	call.reply.Extents = call.reply.States["base:allocation"]
	call.contexts = len(c.contexts) - len(call.reply.States)
	return nil
}

func (c *call) storeError(kind uint16, p []byte) error {
	code, n, rest := binary.BigEndian.Uint32(p), int(binary.BigEndian.Uint16(p[4:])), p[6:]
	if code == 0 || n > len(rest) || n > maxString {
		return fmt.Errorf("an error chunk has code %d and a text of %d bytes", code, n)
	}
	c.failure = &Error{Code: code, Text: string(rest[:n]), Offset: -1}
	rest = rest[n:]
	if kind == chunkErrorOffset && len(rest) == 8 {
		c.failure.Offset = int64(binary.BigEndian.Uint64(rest))
		rest = nil
	}
	if len(rest) > 0 {
		return fmt.Errorf("%d bytes follow in an error chunk", len(rest))
	}
	return nil
}

// checkComplete checks that a finished structured reply has all required content.
func (c *call) checkComplete() error {
	if c.failure != nil {
		return nil
	}
	var total uint64
	for _, s := range c.covered {
		total += s.to - s.from
	}
	if c.Command == CmdRead && total != uint64(c.Length) {
		return fmt.Errorf("a reply has %d of %d bytes", total, c.Length)
	}
	if c.Command == CmdBlockStatus && (c.reply.States == nil || c.contexts > 0) {
		return errors.New("a reply lacks a block status")
	}
	return nil
}

// Start sends a request and returns a function that waits for its reply. An error reply is an
// *Error. Any other error means that the connection has failed or that ctx has ended.
func (c *Client) Start(q Request) (wait func(ctx context.Context) (Reply, error), err error) {
	call := &call{Request: q, done: make(chan struct{})}
	cookie, err := c.registerCall(call)
	if err != nil {
		return nil, err
	}
	c.sending.Lock()
	_, err = c.conn.Write(RequestBytes(cookie, q))
	c.sending.Unlock()
	if err != nil {
		return nil, err
	}
	return call.awaitReply, nil
}

func (c *Client) registerCall(call *call) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	c.cookie++
	c.calls[c.cookie] = call
	return c.cookie, nil
}

func (c *call) awaitReply(ctx context.Context) (Reply, error) {
	select {
	case <-c.done:
	case <-ctx.Done():
		return Reply{}, ctx.Err()
	}
	if c.err != nil {
		return Reply{}, c.err
	}
	if c.failure != nil {
		return c.reply, c.failure
	}
	return c.reply, nil
}

// Do sends a request and waits for its reply.
func (c *Client) Do(ctx context.Context, q Request) (Reply, error) {
	wait, err := c.Start(q)
	if err != nil {
		return Reply{}, err
	}
	return wait(ctx)
}

// Read fills p with the bytes that start at off.
func (c *Client) Read(ctx context.Context, p []byte, off uint64) error {
	reply, err := c.Do(ctx, Request{Command: CmdRead, Offset: off, Length: uint32(len(p))})
	copy(p, reply.Data)
	return err
}

// Write writes p at off. flags may be CmdFlagFUA.
func (c *Client) Write(ctx context.Context, p []byte, off uint64, flags uint16) error {
	_, err := c.Do(ctx, Request{Flags: flags, Command: CmdWrite, Offset: off, Length: uint32(len(p)), Data: p})
	return err
}

// Flush makes all completed writes durable.
func (c *Client) Flush(ctx context.Context) error {
	_, err := c.Do(ctx, Request{Command: CmdFlush})
	return err
}

// Cache asks the server to prefetch a range.
func (c *Client) Cache(ctx context.Context, off uint64, n uint32) error {
	_, err := c.Do(ctx, Request{Command: CmdCache, Offset: off, Length: n})
	return err
}

// BlockStatus returns the extents of data and zeros in a range. flags may be CmdFlagReqOne.
func (c *Client) BlockStatus(ctx context.Context, off uint64, n uint32, flags uint16) ([]Extent, error) {
	reply, err := c.Do(ctx, Request{Flags: flags, Command: CmdBlockStatus, Offset: off, Length: n})
	return reply.Extents, err
}

// Disconnect sends a disconnect request and waits until the server closes the connection.
func (c *Client) Disconnect() error {
	c.sending.Lock()
	_, err := c.conn.Write(RequestBytes(0, Request{Command: CmdDisc}))
	c.sending.Unlock()
	if err != nil {
		return err
	}
	<-c.received
	if !errors.Is(c.err, io.EOF) {
		return c.err
	}
	return nil
}
