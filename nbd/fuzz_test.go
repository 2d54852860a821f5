package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"iter"
	"log/slog"
	"net"
	"slices"
	"testing"
	"time"
)

// fakeDevice is a writable device that reads as zeros. Parts of it are resident, and parts are
// known to be zeros.
type fakeDevice struct{ extents []Extent }

func (fakeDevice) Size() int64                                  { return 256 << 10 }
func (fakeDevice) ReadAt(context.Context, []byte, int64) error  { return nil }
func (fakeDevice) WriteAt(context.Context, []byte, int64) error { return nil }
func (fakeDevice) Flush(context.Context) error                  { return nil }
func (fakeDevice) Prefetch(context.Context, int64, int64) error { return nil }
func (fakeDevice) ReadResident(p []byte, off int64) bool        { return off%8192 < 4096 }
func (fakeDevice) Contexts() []string                           { return []string{"x-a:b", "x-a:c"} }
func (f fakeDevice) States(_ string, off, n int64) iter.Seq[State] {
	return func(yield func(State) bool) {
		for i, e := range f.extents {
			if !yield(State{e.Length, uint32(i % 3)}) {
				return
			}
		}
	}
}
func (f fakeDevice) Extents(off, n int64) (all iter.Seq[Extent]) { return slices.Values(f.extents) }

func optionBytes(id uint32, data string) []byte {
	p := appendU32(appendU32(appendU64(nil, magicOption), id), uint32(len(data)))
	return append(p, data...)
}

// fakeConn is a connection: Read returns the peer's bytes, and the Buffer has the bytes written to
// the peer.
type fakeConn struct {
	io.Reader
	bytes.Buffer
}

func (s *fakeConn) Read(p []byte) (int, error) { return s.Reader.Read(p) }

func FuzzHandshake(f *testing.F) {
	flags := []byte{0, 0, 0, 3}
	contexts := "\x00\x00\x00\x01x\x00\x00\x00\x01\x00\x00\x00\x0fbase:allocation"
	f.Add(slices.Concat(flags, optionBytes(optStructuredReply, ""), optionBytes(optSetMetaContext, contexts),
		optionBytes(optInfo, "\x00\x00\x00\x01x\x00\x01\x00\x03"), optionBytes(optGo, "\x00\x00\x00\x01x\x00\x00")))
	f.Add(slices.Concat(flags, optionBytes(optList, ""), optionBytes(optListMetaContext, contexts), optionBytes(optAbort, "bye")))
	f.Add(slices.Concat(flags, optionBytes(optExportName, "x")))
	f.Add(slices.Concat(flags, optionBytes(optGo, "\xf0\x00\x00\x00x\x00\x00")))
	f.Add([]byte{0, 0, 0, 4})
	f.Fuzz(func(t *testing.T, said []byte) {
		s, h, lent := newFakeHandshake(said)
		agreed, err := h.run(t.Context())
		if (agreed == nil) == (err == nil) {
			t.Fatalf("run = %v, %v", agreed, err)
		}
		if agreed != nil {
			agreed.export.callRelease()
		}
		if *lent != 0 {
			t.Fatalf("%d exports are not released", *lent)
		}
		checkOptionReplies(t, s.Next(18), s.Bytes())
	})
}

// newFakeHandshake returns a handshake with a client that sends these bytes, and the number of
// exports that it holds.
func newFakeHandshake(said []byte) (*fakeConn, *handshake, *int) {
	s, lent := &fakeConn{Reader: bytes.NewReader(said)}, new(int)
	return s, &handshake{
		conn: s, exports: countingExports{lent}, budget: newBudget(time.Hour),
		setDeadline: func(time.Time) error { return nil },
		exemptConn:  func() bool { return true },
	}, lent
}

// countingExports has one export, x, and counts how often it is held.
type countingExports struct{ held *int }

func (l countingExports) Open(_ context.Context, name string) (*Export, error) {
	if name != "x" {
		return nil, ErrUnknown
	}
	*l.held++
	return &Export{Name: "x", Device: fakeDevice{}, Release: func() { *l.held-- }}, nil
}

func (l countingExports) Describe(_ context.Context, name string) (*Export, error) {
	if name != "x" {
		return nil, ErrUnknown
	}
	return &Export{Name: "x", Device: fakeDevice{}, Release: func() { *l.held-- }}, nil
}

func (l countingExports) All(context.Context) ([]Listing, error) {
	return []Listing{{Name: "x", Description: "secret"}}, nil
}

// FuzzTLSRequired sends options to a server that requires TLS. Before TLS the server sends only
// refusals. What it negotiated before TLS is void afterwards.
func FuzzTLSRequired(f *testing.F) {
	flags := []byte{0, 0, 0, 3}
	set := optionBytes(optSetMetaContext, "\x00\x00\x00\x01x\x00\x00\x00\x01\x00\x00\x00\x05x-a:b")
	use := optionBytes(optGo, "\x00\x00\x00\x01x\x00\x00")
	f.Add(slices.Concat(flags, optionBytes(optStructuredReply, ""), set, optionBytes(optStartTLS, ""), use))
	f.Add(slices.Concat(flags, use, optionBytes(optStartTLS, "x"), optionBytes(optStartTLS, ""), optionBytes(optStartTLS, ""), optionBytes(optList, "")))
	f.Add(slices.Concat(flags, optionBytes(optStartTLS, ""), optionBytes(optStructuredReply, ""), set, use))
	f.Add(slices.Concat(flags, optionBytes(optExportName, "x")))
	f.Add(slices.Concat(flags, optionBytes(optInfo, "\x00\x00\x00\x01x\x00\x00"), optionBytes(optList, ""), optionBytes(optAbort, "")))
	f.Fuzz(func(t *testing.T, said []byte) {
		s, h, lent := newFakeHandshake(said)
		h.upgradeTLS = func() (io.ReadWriter, error) {
			if *lent != 0 || h.described != (described{}) {
				t.Fatal("an export was opened without TLS")
			}
			checkTLSRequired(t, s.Bytes())
			return s, nil
		}
		agreed, err := h.run(t.Context())
		if (agreed == nil) == (err == nil) {
			t.Fatalf("run = %v, %v", agreed, err)
		}
		if !h.overTLS {
			checkTLSRequired(t, s.Bytes())
		}
		if agreed != nil && !h.overTLS {
			t.Fatal("an export without TLS")
		}
		if agreed == nil {
			return
		}
		_, secret, _ := bytes.Cut(said, optionBytes(optStartTLS, ""))
		if agreed.structured && !bytes.Contains(secret, optionBytes(optStructuredReply, "")) {
			t.Fatal("options sent before TLS apply after it")
		}
	})
}

// checkTLSRequired checks that a server has sent only refusals and acknowledgements of ABORT and
// STARTTLS.
func checkTLSRequired(t *testing.T, p []byte) {
	for p = p[18:]; len(p) >= 20; p = p[20+binary.BigEndian.Uint32(p[16:]):] {
		option, kind := binary.BigEndian.Uint32(p[8:]), binary.BigEndian.Uint32(p[12:])
		if kind>>31 == 0 && (kind != repAck || option != optAbort && option != optStartTLS) {
			t.Fatalf("option %d is answered with %d", option, kind)
		}
	}
	if len(p) > 0 {
		t.Fatalf("%d bytes are no reply", len(p))
	}
}

// checkOptionReplies checks that the server's bytes are a greeting and complete replies. The answer
// to EXPORT_NAME may follow, which has one of two sizes.
func checkOptionReplies(t *testing.T, greeting, p []byte) {
	if len(greeting) != 18 {
		t.Fatalf("the greeting is %q", greeting)
	}
	for len(p) >= 20 && binary.BigEndian.Uint64(p) == magicOptionReply {
		n := binary.BigEndian.Uint32(p[16:])
		if uint64(n) > uint64(len(p)-20) || n > 2*maxString {
			t.Fatalf("a reply has %d bytes", n)
		}
		p = p[20+n:]
	}
	if len(p) != 0 && len(p) != 10 && len(p) != 134 {
		t.Fatalf("%d bytes are no reply", len(p))
	}
}

func wireRequest(flags uint16, c Command, offset uint64, length uint32) []byte {
	p := appendU16(appendU16(appendU32(nil, magicRequest), flags), uint16(c))
	return appendU32(appendU64(appendU64(p, 7), offset), length)
}

func FuzzTransmission(f *testing.F) {
	all := slices.Concat(
		wireRequest(0, CmdRead, 0, 100), wireRequest(0, CmdRead, 4096, 40000), wireRequest(flagDF, CmdRead, 0, 65536),
		wireRequest(flagFUA, CmdWrite, 5, 3), []byte("abc"), wireRequest(flagNoHole, CmdWriteZeroes, 1, 512),
		wireRequest(0, CmdFlush, 0, 0), wireRequest(0, cmdTrim, 0, 512), wireRequest(0, CmdCache, 0, 512),
		wireRequest(flagReqOne, CmdBlockStatus, 0, 99999))
	f.Add(all, true, true, uint16(0x0f0f))
	f.Add(append(all, wireRequest(0, cmdDisconnect, 0, 0)...), false, true, uint16(1))
	far := slices.Concat(wireRequest(0, CmdRead, 1<<63, 1<<32-1), wireRequest(0, CmdWrite, 1<<63, 4), []byte("abcd"))
	f.Add(far, true, false, uint16(0))
	f.Add(wireRequest(0, CmdWrite, 0, 1<<32-1), true, true, uint16(0))
	f.Add([]byte("garbage, and enough of it to be a request"), true, true, uint16(0))
	f.Fuzz(func(t *testing.T, said []byte, structured, readOnly bool, zeros uint16) {
		var d fakeDevice
		for i := range 16 {
			d.extents = append(d.extents, Extent{Length: 16 << 10, Zero: zeros>>i&1 != 0})
		}
		ours, theirs := net.Pipe()
		defer ours.Close()
		agreed := &session{export: &Export{Device: d, ReadOnly: readOnly}, size: uint64(d.Size()), structured: structured}
		if structured {
			agreed.contexts = agreed.export.contextNames()
		}
		tr := newTransmission(t.Context(), new(Server), ours, agreed, slog.New(slog.DiscardHandler))
		go sendAndClose(theirs, said)
		if err := tr.run(); err == nil {
			t.Error("run = nil, want how it ended")
		}
		if tr.inFlight.requests != 0 || tr.inFlight.bytes != 0 {
			t.Errorf("%d requests and %d bytes are still held", tr.inFlight.requests, tr.inFlight.bytes)
		}
	})
}

// sendAndClose sends all bytes while it receives, and closes the connection.
func sendAndClose(conn net.Conn, said []byte) {
	go io.Copy(io.Discard, conn)
	conn.Write(said)
	conn.Close()
}

// extentList has the extents of a device from its start on.
type extentList []Extent

func (p extentList) Extents(off, n int64) iter.Seq[Extent] {
	return func(yield func(Extent) bool) {
		at := int64(0)
		for _, e := range p {
			from, to := max(at, off), min(at+e.Length, off+n)
			if at += e.Length; from < to && !yield(Extent{to - from, e.Zero}) {
				return
			}
		}
	}
}

// FuzzPieces checks that the pieces of a read cover its range, in order, with holes only where
// zeros are.
func FuzzPieces(f *testing.F) {
	f.Add([]byte{10, 200, 3, 200}, uint32(5), uint32(1<<20))
	f.Add(bytes.Repeat([]byte{1, 9}, 40), uint32(0), uint32(1<<21))
	f.Fuzz(func(t *testing.T, sizes []byte, off, n uint32) {
		var extents []Extent
		size := int64(0)
		for i, s := range sizes {
			e := Extent{Length: int64(s)*4096 + int64(i%3), Zero: i%2 == 1}
			extents = append(extents, e)
			size += e.Length
		}
		from := min(int64(off), size)
		to := min(from+int64(n), size)
		if from == to {
			return
		}
		isZero := func(at, end int64) bool {
			pos := int64(0)
			for _, e := range extents {
				if !e.Zero && max(pos, at) < min(pos+e.Length, end) {
					return false
				}
				pos += e.Length
			}
			return true
		}
		pieces := appendPieces(nil, zeroRanges(extentList(extents), from, to, size, minHole), from, to)
		at := from
		for _, p := range pieces {
			if p.offset != at || p.length <= 0 || p.hole && (p.length < minHole || !isZero(at, at+p.length)) {
				t.Fatalf("piece %+v at %d of %v", p, at, extents)
			}
			at += p.length
		}
		if at != to || len(pieces) > maxPieces {
			t.Fatalf("%d pieces up to %d, want %d", len(pieces), at, to)
		}
	})
}
