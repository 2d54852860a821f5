// Package nbdtest is a small NBD client for tests and for the replay of traces. It is strict: it
// reports protocol errors of a server that a lenient client would ignore. It is independent of
// package nbd, which it tests, and does not use the kernel's NBD driver.
package nbdtest

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// Dial connects to a server and exchanges greetings.
func Dial(ctx context.Context, network, address string) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c, err := New(conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// New exchanges greetings over a connection. The client owns the connection if New succeeds.
func New(conn net.Conn) (*Client, error) {
	var p [18]byte
	if _, err := io.ReadFull(conn, p[:]); err != nil {
		return nil, fmt.Errorf("reading the greeting: %w", err)
	}
	if string(p[:16]) != "NBDMAGICIHAVEOPT" {
		return nil, fmt.Errorf("the greeting is %q", p[:16])
	}
	flags := binary.BigEndian.Uint16(p[16:])
	if flags&1 == 0 || flags&^3 != 0 {
		return nil, fmt.Errorf("handshake flags are %#x", flags)
	}
	c := &Client{conn: conn, noZeroes: flags&2 != 0, calls: make(map[uint64]*call)}
	_, err := conn.Write(binary.BigEndian.AppendUint32(nil, uint32(flags)))
	return c, err
}

// Close closes the connection without a disconnect request. Requests without a reply fail.
func (c *Client) Close() error {
	err := c.conn.Close()
	if c.received != nil {
		<-c.received
	}
	return err
}

// OptionReply is one reply to an option.
type OptionReply struct {
	Type uint32
	Data []byte
}

// Option sends an option and returns the replies before the final ACK. An error reply ends them too
// and is returned as an *OptionError.
func (c *Client) Option(id uint32, data []byte) ([]OptionReply, error) {
	if _, err := c.conn.Write(OptionBytes(id, data)); err != nil {
		return nil, err
	}
	var all []OptionReply
	for {
		r, err := c.optionReply(id)
		switch {
		case err != nil:
			return all, err
		case r.Type == repAck && len(r.Data) > 0:
			return all, fmt.Errorf("ACK of option %d has data", id)
		case r.Type == repAck:
			return all, nil
		case r.Type&repError != 0:
			return all, &OptionError{r.Type, string(r.Data)}
		}
		all = append(all, r)
	}
}

func (c *Client) optionReply(id uint32) (OptionReply, error) {
	var head [20]byte
	if _, err := io.ReadFull(c.conn, head[:]); err != nil {
		return OptionReply{}, fmt.Errorf("reading a reply to option %d: %w", id, err)
	}
	r := OptionReply{Type: binary.BigEndian.Uint32(head[12:])}
	n := binary.BigEndian.Uint32(head[16:])
	magic, to := binary.BigEndian.Uint64(head[:]), binary.BigEndian.Uint32(head[8:])
	if magic != magicReply || to != id {
		return r, fmt.Errorf("a reply to option %d starts with %#x and is for %d", id, magic, to)
	}
	if n > 2*maxString+8 {
		return r, fmt.Errorf("a reply to option %d has %d bytes", id, n)
	}
	r.Data = make([]byte, n)
	_, err := io.ReadFull(c.conn, r.Data)
	return r, err
}

// StructuredReplies negotiates structured replies.
func (c *Client) StructuredReplies() error {
	_, err := c.Option(OptStructuredReply, nil)
	c.structured = c.structured || err == nil
	return err
}

// StartTLS upgrades the connection to TLS. All earlier negotiation is void and must be repeated.
func (c *Client) StartTLS(config *tls.Config) error {
	if _, err := c.Option(OptStartTLS, nil); err != nil {
		return err
	}
	conn := tls.Client(c.conn, config)
	c.conn, c.structured, c.contexts = conn, false, nil
	return conn.Handshake()
}

func metaContextData(export string, queries []string) []byte {
	p := binary.BigEndian.AppendUint32(AppendString(nil, export), uint32(len(queries)))
	for _, q := range queries {
		p = AppendString(p, q)
	}
	return p
}

func (c *Client) metaContext(id uint32, export string, queries []string) (map[uint32]string, []string, error) {
	replies, err := c.Option(id, metaContextData(export, queries))
	ids, names := make(map[uint32]string), []string(nil)
	for _, r := range replies {
		if r.Type != repMetaContext || len(r.Data) < 5 {
			return nil, nil, fmt.Errorf("reply %#x with %d bytes to a context option", r.Type, len(r.Data))
		}
		name := string(r.Data[4:])
		ids[binary.BigEndian.Uint32(r.Data)] = name
		names = append(names, name)
	}
	return ids, names, err
}

// ListMetaContexts returns the names of the contexts that match the queries.
func (c *Client) ListMetaContexts(export string, queries ...string) ([]string, error) {
	_, names, err := c.metaContext(OptListMetaContext, export, queries)
	return names, err
}

// SetMetaContexts selects contexts, and returns the names of the ones that the server has.
func (c *Client) SetMetaContexts(export string, queries ...string) ([]string, error) {
	ids, names, err := c.metaContext(OptSetMetaContext, export, queries)
	c.contexts = nil
	if err == nil && len(ids) != len(names) {
		err = fmt.Errorf("two contexts of %q have one id", names)
	}
	if err == nil {
		c.contexts = ids
	}
	return names, err
}

// Listing is an export in the server's list.
type Listing struct{ Name, Description string }

// List returns the exports that the server lists.
func (c *Client) List() ([]Listing, error) {
	replies, err := c.Option(OptList, nil)
	var all []Listing
	for _, r := range replies {
		if r.Type != repServer || len(r.Data) < 4 {
			return nil, fmt.Errorf("reply %#x with %d bytes to LIST", r.Type, len(r.Data))
		}
		n, rest := binary.BigEndian.Uint32(r.Data), r.Data[4:]
		if uint64(n) > uint64(len(rest)) || n > maxString {
			return nil, fmt.Errorf("a listed name has %d bytes", n)
		}
		all = append(all, Listing{string(rest[:n]), string(rest[n:])})
	}
	return all, err
}

// Info holds the server's information about an export. Missing information is zero.
type Info struct {
	Size                uint64
	Flags               uint16
	Name, Description   string
	Min, Preferred, Max uint32 // block sizes; Max is the largest payload
}

// InfoData returns the data of an INFO or GO option that requests all information.
func InfoData(name string) []byte {
	p := binary.BigEndian.AppendUint16(AppendString(nil, name), 4)
	for kind := range uint16(4) {
		p = binary.BigEndian.AppendUint16(p, kind)
	}
	return p
}

// Info requests all information about an export.
func (c *Client) Info(name string) (Info, error) { return c.requestInfo(OptInfo, name) }

// Go selects an export and starts the transmission phase.
func (c *Client) Go(name string) (Info, error) {
	info, err := c.requestInfo(OptGo, name)
	if err == nil {
		c.startReceiving(info)
	}
	return info, err
}

func (c *Client) requestInfo(id uint32, name string) (Info, error) {
	var info Info
	replies, err := c.Option(id, InfoData(name))
	if err != nil {
		return info, err
	}
	seen := make(map[uint16]bool)
	for _, r := range replies {
		if r.Type != repInfo || len(r.Data) < 2 {
			return info, fmt.Errorf("reply %#x with %d bytes to INFO or GO", r.Type, len(r.Data))
		}
		kind := binary.BigEndian.Uint16(r.Data)
		if seen[kind] {
			return info, fmt.Errorf("information %d came twice", kind)
		}
		seen[kind] = true
		if err := info.setField(kind, r.Data[2:]); err != nil {
			return info, err
		}
	}
	if !seen[0] {
		return info, errors.New("the server did not say the size of the export")
	}
	return info, nil
}

func (i *Info) setField(kind uint16, p []byte) error {
	switch {
	case kind == 0 && len(p) == 10:
		i.Size, i.Flags = binary.BigEndian.Uint64(p), binary.BigEndian.Uint16(p[8:])
	case kind == 1 && len(p) <= maxString:
		i.Name = string(p)
	case kind == 2 && len(p) <= maxString:
		i.Description = string(p)
	case kind == 3 && len(p) == 12:
		i.Min = binary.BigEndian.Uint32(p)
		i.Preferred = binary.BigEndian.Uint32(p[4:])
		i.Max = binary.BigEndian.Uint32(p[8:])
	default:
		return fmt.Errorf("information %d with %d bytes", kind, len(p))
	}
	return nil
}

// ExportName selects an export with the older option NBD_OPT_EXPORT_NAME, and starts the
// transmission phase.
func (c *Client) ExportName(name string) (Info, error) {
	if _, err := c.conn.Write(OptionBytes(OptExportName, []byte(name))); err != nil {
		return Info{}, err
	}
	p := make([]byte, 10, 134)
	if !c.noZeroes {
		p = p[:134]
	}
	if _, err := io.ReadFull(c.conn, p); err != nil {
		return Info{}, fmt.Errorf("the server does not serve %q: %w", name, err)
	}
	for _, b := range p[10:] {
		if b != 0 {
			return Info{}, errors.New("the padding is not zero")
		}
	}
	info := Info{Size: binary.BigEndian.Uint64(p), Flags: binary.BigEndian.Uint16(p[8:])}
	c.startReceiving(info)
	return info, nil
}

// Abort ends the handshake, and waits until the server closes the connection.
func (c *Client) Abort() error {
	if _, err := c.Option(OptAbort, nil); err != nil {
		return err
	}
	return c.expectEnd()
}

var errExtraBytes = errors.New("it sent more bytes")

func (c *Client) expectEnd() error {
	var p [1]byte
	if _, err := c.conn.Read(p[:]); !errors.Is(err, io.EOF) {
		return fmt.Errorf("the server did not close the connection: %w", cmp.Or(err, errExtraBytes))
	}
	return nil
}
