package nbdtest

import (
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
)

func be(parts ...any) []byte {
	var p []byte
	for _, v := range parts {
		if s, ok := v.(string); ok {
			p = append(p, s...)
			continue
		}
		p, _ = binary.Append(p, binary.BigEndian, v) // the parts are integers of fixed size
	}
	return p
}

func chunk(flags, kind uint16, cookie uint64, data []byte) []byte {
	return append(be(uint32(magicChunk), flags, kind, cookie, uint32(len(data))), data...)
}

// replies returns a client in the transmission phase whose server answers the first request with said.
func replies(t *testing.T, structured bool, said []byte) *Client {
	t.Helper()
	ours, theirs := net.Pipe()
	c := &Client{conn: ours, structured: structured, calls: make(map[uint64]*call)}
	c.contexts = map[uint32]string{3: "base:allocation"}
	c.startReceiving(Info{Size: 1 << 20})
	served := make(chan struct{})
	go func() {
		defer close(served)
		theirs.Read(make([]byte, 28))
		theirs.Write(said)
		theirs.Close()
	}()
	t.Cleanup(func() {
		c.Close()
		<-served
	})
	return c
}

// TestStrict: replies that violate the protocol are errors.
func TestStrict(t *testing.T) {
	read := Request{Offset: 100, Length: 8}
	status := Request{Command: CmdBlockStatus, Length: 4096, Flags: CmdFlagReqOne}
	data := func(offset uint64, s string) []byte { return be(offset, s) }
	cases := []struct {
		what       string
		q          Request
		structured bool
		said       []byte
	}{
		{"nothing", read, false, nil},
		{"garbage", read, false, []byte("garbage, garbage, garbage")},
		{"unknown cookie", read, false, be(uint32(magicSimple), uint32(0), uint64(9), "12345678")},
		{"short data", read, false, be(uint32(magicSimple), uint32(0), uint64(1), "1234567")},
		{"structured out of the blue", read, false, chunk(1, chunkData, 1, data(100, "12345678"))},
		{"simple after structured", read, true, be(uint32(magicSimple), uint32(0), uint64(1), "12345678")},
		{"incomplete", read, true, chunk(1, chunkData, 1, data(100, "1234"))},
		{"without end", read, true, chunk(0, chunkData, 1, data(100, "12345678"))},
		{"beyond the request", read, true, chunk(1, chunkData, 1, data(101, "12345678"))},
		{"before the request", read, true, chunk(1, chunkData, 1, data(99, "12345678"))},
		{"overlap", read, true,
			append(chunk(0, chunkData, 1, data(100, "1234")), chunk(1, chunkHole, 1, be(uint64(103), uint32(5)))...)},
		{"empty hole", read, true, chunk(1, chunkHole, 1, be(uint64(100), uint32(0)))},
		{"unknown kind", read, true, chunk(1, 77, 1, nil)},
		{"unknown flags", read, true, chunk(3, chunkData, 1, data(100, "12345678"))},
		{"status for a read", read, true, chunk(1, chunkStatus, 1, be(uint32(3), uint32(4096), uint32(0)))},
		{"4 GiB", read, true, be(uint32(magicChunk), uint16(1), uint16(chunkData), uint64(1), uint32(1<<32-1))},
		{"error 0", read, true, chunk(1, chunkError, 1, be(uint32(0), uint16(0)))},
		{"error with a long text", read, true, chunk(1, chunkError, 1, be(uint32(5), uint16(4), "abc"))},
		{"unknown context", status, true, chunk(1, chunkStatus, 1, be(uint32(4), uint32(4096), uint32(0)))},
		{"two extents for one", status, true, chunk(1, chunkStatus, 1, be(uint32(3), uint64(1024)<<32, uint64(1024)<<32))},
		{"longer than asked", status, true, chunk(1, chunkStatus, 1, be(uint32(3), uint32(8192), uint32(0)))},
		{"empty extent", status, true, chunk(1, chunkStatus, 1, be(uint32(3), uint32(0), uint32(0)))},
		{"no status", status, true, chunk(1, chunkNone, 1, nil)},
	}
	for _, tc := range cases {
		c := replies(t, tc.structured, tc.said)
		_, err := c.Do(t.Context(), tc.q)
		if _, ok := errors.AsType[*Error](err); err == nil || ok {
			t.Errorf("%s: %v, want a failure of the connection", tc.what, err)
		}
	}
}

func TestReplies(t *testing.T) {
	c := replies(t, true, slices.Concat(chunk(0, chunkHole, 1, be(uint64(104), uint32(4))),
		chunk(0, chunkData, 1, be(uint64(100), "1234")), chunk(1, chunkNone, 1, nil)))
	reply, err := c.Do(t.Context(), Request{Offset: 100, Length: 8})
	if err != nil || string(reply.Data) != "1234\x00\x00\x00\x00" || reply.Holes != 1 || reply.Chunks != 3 {
		t.Errorf("Do = %+v, %v", reply, err)
	}
	c = replies(t, true, chunk(1, chunkErrorOffset, 1, be(uint32(5), uint16(3), "bad", uint64(104))))
	_, err = c.Do(t.Context(), Request{Offset: 100, Length: 8})
	if e, ok := errors.AsType[*Error](err); !ok || e.Offset != 104 || !strings.Contains(e.Error(), "bad") {
		t.Errorf("Do = %v", err)
	}
}

// FuzzReplies lets a server send any bytes to a client with two requests.
func FuzzReplies(f *testing.F) {
	f.Add(chunk(1, chunkData, 1, be(uint64(0), strings.Repeat("x", 4096))), true)
	f.Add(chunk(1, chunkStatus, 2, be(uint32(3), uint32(4096), uint32(0))), true)
	f.Add(be(uint32(magicSimple), uint32(0), uint64(1), strings.Repeat("x", 4096)), false)
	f.Fuzz(func(t *testing.T, said []byte, structured bool) {
		c := replies(t, structured, said)
		wait, err := c.Start(Request{Length: 4096})
		if err != nil {
			t.Fatal(err)
		}
		if reply, err := wait(t.Context()); err == nil && len(reply.Data) != 4096 {
			t.Errorf("a read gave %d bytes", len(reply.Data))
		}
	})
}
