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

// fake is a device that reads as zeros, in parts resident and in parts known to be zeros, and takes writes.
type fake struct{ extents []Extent }

func (fake) Size() int64                                  { return 256 << 10 }
func (fake) ReadAt(context.Context, []byte, int64) error  { return nil }
func (fake) WriteAt(context.Context, []byte, int64) error { return nil }
func (fake) Flush(context.Context) error                  { return nil }
func (fake) Prefetch(context.Context, int64, int64) error { return nil }
func (fake) ReadResident(p []byte, off int64) bool        { return off%8192 < 4096 }
func (fake) Contexts() []string                           { return []string{"x-a:b", "x-a:c"} }
func (f fake) States(_ string, off, n int64) iter.Seq[State] {
	return func(yield func(State) bool) {
		for i, e := range f.extents {
			if !yield(State{e.Length, uint32(i % 3)}) {
				return
			}
		}
	}
}
func (f fake) Extents(off, n int64) (all iter.Seq[Extent]) { return slices.Values(f.extents) }

func frame(id uint32, data string) []byte {
	p := appendU32(appendU32(appendU64(nil, magicOption), id), uint32(len(data)))
	return append(p, data...)
}

// script is one side of a conversation: what the peer says, and what it is told.
type script struct {
	io.Reader
	bytes.Buffer
}

func (s *script) Read(p []byte) (int, error) { return s.Reader.Read(p) }

func FuzzHandshake(f *testing.F) {
	flags := []byte{0, 0, 0, 3}
	contexts := "\x00\x00\x00\x01x\x00\x00\x00\x01\x00\x00\x00\x0fbase:allocation"
	f.Add(slices.Concat(flags, frame(optStructuredReply, ""), frame(optSetMetaContext, contexts),
		frame(optInfo, "\x00\x00\x00\x01x\x00\x01\x00\x03"), frame(optGo, "\x00\x00\x00\x01x\x00\x00")))
	f.Add(slices.Concat(flags, frame(optList, ""), frame(optListMetaContext, contexts), frame(optAbort, "bye")))
	f.Add(slices.Concat(flags, frame(optExportName, "x")))
	f.Add(slices.Concat(flags, frame(optGo, "\xf0\x00\x00\x00x\x00\x00")))
	f.Add([]byte{0, 0, 0, 4})
	f.Fuzz(func(t *testing.T, said []byte) {
		s, h, lent := newScript(said)
		agreed, err := h.run(t.Context())
		if (agreed == nil) == (err == nil) {
			t.Fatalf("run = %v, %v", agreed, err)
		}
		if agreed != nil {
			agreed.export.release()
		}
		if *lent != 0 {
			t.Fatalf("%d exports are not released", *lent)
		}
		checkOptionReplies(t, s.Next(18), s.Bytes())
	})
}

// newScript is a handshake with a client that says this, and how many exports it holds.
func newScript(said []byte) (*script, *handshake, *int) {
	s, lent := &script{Reader: bytes.NewReader(said)}, new(int)
	return s, &handshake{
		conn: s, exports: lending{lent}, budget: newBudget(time.Hour),
		extend: func(time.Time) error { return nil },
		settle: func() bool { return true },
	}, lent
}

// lending offers x, and counts how often it is held.
type lending struct{ lent *int }

func (l lending) Open(_ context.Context, name string) (*Export, error) {
	if name != "x" {
		return nil, ErrUnknown
	}
	*l.lent++
	return &Export{Name: "x", Device: fake{}, Release: func() { *l.lent-- }}, nil
}

func (l lending) Describe(_ context.Context, name string) (*Export, error) {
	if name != "x" {
		return nil, ErrUnknown
	}
	return &Export{Name: "x", Device: fake{}, Release: func() { *l.lent-- }}, nil
}

func (l lending) All(context.Context) ([]Listing, error) {
	return []Listing{{Name: "x", Description: "secret"}}, nil
}

// FuzzTLSRequired has a client talk to a server that wants TLS. Before it has it, the server says nothing of what it
// has, and of what the client has said nothing counts afterwards.
func FuzzTLSRequired(f *testing.F) {
	flags := []byte{0, 0, 0, 3}
	set := frame(optSetMetaContext, "\x00\x00\x00\x01x\x00\x00\x00\x01\x00\x00\x00\x05x-a:b")
	use := frame(optGo, "\x00\x00\x00\x01x\x00\x00")
	f.Add(slices.Concat(flags, frame(optStructuredReply, ""), set, frame(optStartTLS, ""), use))
	f.Add(slices.Concat(flags, use, frame(optStartTLS, "x"), frame(optStartTLS, ""), frame(optStartTLS, ""), frame(optList, "")))
	f.Add(slices.Concat(flags, frame(optStartTLS, ""), frame(optStructuredReply, ""), set, use))
	f.Add(slices.Concat(flags, frame(optExportName, "x")))
	f.Add(slices.Concat(flags, frame(optInfo, "\x00\x00\x00\x01x\x00\x00"), frame(optList, ""), frame(optAbort, "")))
	f.Fuzz(func(t *testing.T, said []byte) {
		s, h, lent := newScript(said)
		h.secure = func() (io.ReadWriter, error) {
			if *lent != 0 || h.described != (described{}) {
				t.Fatal("an export was opened without TLS")
			}
			checkVeiled(t, s.Bytes())
			return s, nil
		}
		agreed, err := h.run(t.Context())
		if (agreed == nil) == (err == nil) {
			t.Fatalf("run = %v, %v", agreed, err)
		}
		if !h.protected {
			checkVeiled(t, s.Bytes())
		}
		if agreed != nil && !h.protected {
			t.Fatal("an export without TLS")
		}
		if agreed == nil {
			return
		}
		_, secret, _ := bytes.Cut(said, frame(optStartTLS, ""))
		if agreed.structured && !bytes.Contains(secret, frame(optStructuredReply, "")) {
			t.Fatal("what was negotiated without TLS counts")
		}
	})
}

// checkVeiled sees that a server has told nothing but refusals, and that it is ready for TLS or the end.
func checkVeiled(t *testing.T, p []byte) {
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

// checkOptionReplies sees that what a server said is a greeting and whole replies, but for the answer to
// EXPORT_NAME at the end, which is of one of two sizes.
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
		var d fake
		for i := range 16 {
			d.extents = append(d.extents, Extent{Length: 16 << 10, Zero: zeros>>i&1 != 0})
		}
		ours, theirs := net.Pipe()
		defer ours.Close()
		agreed := &session{export: &Export{Device: d, ReadOnly: readOnly}, size: uint64(d.Size()), structured: structured}
		if structured {
			agreed.contexts = agreed.export.contexts()
		}
		tr := newTransmission(t.Context(), new(Server), ours, agreed, slog.New(slog.DiscardHandler))
		go talk(theirs, said)
		if err := tr.run(); err == nil {
			t.Error("run = nil, want how it ended")
		}
		if tr.gate.requests != 0 || tr.gate.bytes != 0 {
			t.Errorf("%d requests and %d bytes are still held", tr.gate.requests, tr.gate.bytes)
		}
	})
}

// talk says it all while it listens, and hangs up.
func talk(conn net.Conn, said []byte) {
	go io.Copy(io.Discard, conn)
	conn.Write(said)
	conn.Close()
}

// placed is the extents of a device from its start on.
type placed []Extent

func (p placed) Extents(off, n int64) iter.Seq[Extent] {
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

// FuzzPieces checks that a read's pieces are the range, in order, with holes only where zeros are.
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
		pieces := appendPieces(nil, zeros(placed(extents), from, to, size, minHole), from, to)
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
