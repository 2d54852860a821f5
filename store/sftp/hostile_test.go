package sftp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"cairn/store"
	"cairn/store/storetest"
)

// respond returns a server's answer to a request: a packet's type and all bytes after its number.
// If it is nil, the server does not answer.
type respond func(kind byte) []byte

const (
	open, read, opendir, readdir = 3, 5, 11, 12
	statusAnswer, handleAnswer   = 101, 102
	attrsAnswer                  = 105
)

func uint32s(kind byte, values ...uint32) []byte {
	p := []byte{kind}
	for _, v := range values {
		p = binary.BigEndian.AppendUint32(p, v)
	}
	return p
}

// answering returns a bucket with one connection, to a server in this process.
func answering(t testing.TB, answer respond) *Bucket {
	t.Helper()
	return bucketOver(t, func(in io.Reader, out io.Writer) {
		for {
			request := make([]byte, 4)
			if _, err := io.ReadFull(in, request); err != nil {
				return
			}
			request = make([]byte, binary.BigEndian.Uint32(request))
			if _, err := io.ReadFull(in, request); err != nil {
				return
			}
			body := []byte{2}
			number := []byte{0, 0, 0, 3}
			if request[0] != 1 {
				body, number = answer(request[0]), request[1:5]
			}
			if body == nil {
				continue
			}
			p := binary.BigEndian.AppendUint32(nil, uint32(len(body)+4))
			p = append(append(append(p, body[0]), number...), body[1:]...)
			if _, err := out.Write(p); err != nil {
				return
			}
		}
	})
}

// bucketOver returns a bucket whose connection leads to serve.
func bucketOver(t testing.TB, serve func(in io.Reader, out io.Writer)) *Bucket {
	t.Helper()
	in, stdin, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{in: stdin, out: stdout, exited: make(chan struct{})}
	go func() {
		serve(in, out)
		_, _ = in.Close(), out.Close()
	}()
	close(p.exited) // no process to kill
	b, err := New(Location{host: "hostile"}, Options{Connections: 1, Patience: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	a := &attempt{ready: make(chan struct{})}
	if a.conn, a.err = newConn(t.Context(), p, b.o.Patience); a.err != nil {
		a.err = explainConnect("", a.err)
		p.stop()
	}
	close(a.ready)
	b.pool.slots[0].attempt = a
	b.o.Program = "/nonexistent/ssh" // for the next attempt
	t.Cleanup(func() { b.Close() })
	return b
}

// callAll calls every method of a bucket and returns their errors.
func callAll(t testing.TB, b *Bucket) map[string]error {
	_, readErr := b.Read(t.Context(), "x", nil, 1<<20)
	_, statErr := b.Stat(t.Context(), "x")
	_, _, rangeErr := storetest.ReadRange(t.Context(), b, "x", 0, 1<<20)
	errs := map[string]error{
		"Read": readErr, "Stat": statErr,
		"StreamRange": rangeErr,
		"Stream":      b.Stream(t.Context(), "x", 1<<20, func(r io.Reader) error { _, err := io.Copy(io.Discard, r); return err }),
		"Write":       b.Write(t.Context(), "d/x", make([]byte, 100<<10)), "Create": b.Create(t.Context(), "x", []byte("x")),
		"Remove": b.Remove(t.Context(), "x"),
	}
	for _, err := range b.List(t.Context(), "") {
		errs["List"] = err
	}
	return errs
}

// TestGarbled: an answer of the wrong kind is an error, also an "OK" instead of the requested data.
func TestGarbled(t *testing.T) {
	for name, answer := range map[string][]byte{
		"ok": uint32s(statusAnswer, 0), "no status": {statusAnswer}, "end of file": uint32s(statusAnswer, 1),
		"other kind": {99, 1, 2, 3}, "no data": uint32s(packetData, 0), "short data": {packetData, 1},
		"more data than bytes": uint32s(packetData, 1<<31),
	} {
		for what, err := range map[string]error{
			"Read": second(answering(t, func(byte) []byte { return answer }).Read(t.Context(), "x", nil, 10)),
			"Stat": second(answering(t, func(byte) []byte { return answer }).Stat(t.Context(), "x")),
		} {
			if !errors.Is(err, errGarbled) || errors.Is(err, store.ErrUnavailable) {
				t.Errorf("%s: %s = %v, want errGarbled", name, what, err)
			}
		}
	}
}

func second[T any](_ T, err error) error { return err }

// TestEmptyData: a server that answers reads with no bytes does not cause endless requests.
func TestEmptyData(t *testing.T) {
	b := answering(t, func(kind byte) []byte {
		switch kind {
		case open:
			return append(uint32s(handleAnswer, 1), 'h')
		case read:
			return uint32s(packetData, 0)
		}
		return uint32s(attrsAnswer, 0x05, 0, 10, modeRegular)
	})
	if _, err := b.Read(t.Context(), "x", nil, 10); !errors.Is(err, errGarbled) {
		t.Errorf("Read = %v, want errGarbled", err)
	}
}

// TestShortData: a server may send fewer bytes at once than were requested.
func TestShortData(t *testing.T) {
	b := answering(t, func(kind byte) []byte {
		switch kind {
		case open:
			return append(uint32s(handleAnswer, 1), 'h')
		case read:
			return append(uint32s(packetData, 7), "7 bytes"...)
		}
		return uint32s(attrsAnswer, 0x05, 0, 14, modeRegular)
	})
	if got, err := b.Read(t.Context(), "x", nil, 1<<20); string(got) != "7 bytes7 bytes" || err != nil {
		t.Errorf("Read = %q, %v", got, err)
	}
	_, got, err := storetest.ReadRange(t.Context(), b, "x", 3, 10)
	if string(got) != "7 bytes7 b" || err != nil {
		t.Errorf("StreamRange = %q, %v", got, err)
	}
}

// TestFalseSize: a promised size takes no memory before its bytes arrive.
func TestFalseSize(t *testing.T) {
	b := answering(t, func(kind byte) []byte {
		switch kind {
		case open:
			return append(uint32s(handleAnswer, 1), 'h')
		case read:
			return uint32s(statusAnswer, 1)
		}
		return uint32s(attrsAnswer, 0x05, 1<<10, 0, modeRegular)
	})
	if _, err := b.Read(t.Context(), "x", nil, 1<<60); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Read = %v, want io.ErrUnexpectedEOF", err)
	}
	if _, _, err := storetest.ReadRange(t.Context(), b, "x", 1<<40, 1<<40); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("StreamRange = %v, want io.ErrUnexpectedEOF", err)
	}
}

// TestEndlessDirectory: endless names are an error, and take bounded memory.
func TestEndlessDirectory(t *testing.T) {
	names := uint32s(packetName, 10)
	for range 10 {
		names = append(names, uint32s(0, 20<<10)[1:]...)
		names = append(names, bytes.Repeat([]byte{'x'}, 20<<10)...)
		names = append(names, make([]byte, 8)...)
	}
	b := answering(t, func(kind byte) []byte {
		switch kind {
		case opendir:
			return append(uint32s(handleAnswer, 1), 'h')
		case readdir:
			return names
		}
		return uint32s(statusAnswer, 4)
	})
	b.pool.slots[0].attempt.conn.maxNames = 8 << 20
	var last error
	for _, last = range b.List(t.Context(), "") {
	}
	if !errors.Is(last, errNames) {
		t.Errorf("List = %v, want errNames", last)
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if m.HeapSys > 100<<20 {
		t.Errorf("the heap has %d MiB", m.HeapSys>>20)
	}
}

// TestNamesAreCounted: names count only while they are in memory, so many listings together may
// have more of them than one listing may have.
func TestNamesAreCounted(t *testing.T) {
	long := strings.Repeat("x", 200<<10)
	names := append(append(uint32s(packetName, 1, uint32(len(long))), long...), make([]byte, 8)...)
	ended := false
	b := answering(t, func(kind byte) []byte {
		switch kind {
		case opendir:
			ended = false
			return append(uint32s(handleAnswer, 1), 'h')
		case readdir:
			if ended = !ended; ended {
				return names
			}
			return uint32s(statusAnswer, 1)
		}
		return uint32s(statusAnswer, 2)
	})
	b.pool.slots[0].attempt.conn.maxNames = 2 << 20
	for i := range 15 {
		for _, err := range b.List(t.Context(), "") {
			if err != nil {
				t.Fatalf("List %d: %v", i, err)
			}
		}
	}
}

// TestDeafServer: a server that sends garbage and reads nothing does not block a waiting request.
func TestDeafServer(t *testing.T) {
	b := bucketOver(t, func(in io.Reader, out io.Writer) {
		_, _ = io.ReadFull(in, make([]byte, 9))
		_, _ = out.Write([]byte{0, 0, 0, 5, 2, 0, 0, 0, 3})
		_, _ = io.ReadFull(in, make([]byte, 9))
		_, _ = out.Write(append([]byte{0, 0, 0, 10, handleAnswer, 0, 0, 0, 1}, 0, 0, 0, 1, 'h'))
		time.Sleep(100 * time.Millisecond) // until the pipe is full
		_, _ = out.Write([]byte("not SFTP at all"))
		time.Sleep(time.Second)
	})
	if err := b.Write(t.Context(), "x", make([]byte, 1<<20)); !errors.Is(err, errGarbled) {
		t.Errorf("Write = %v, want errGarbled", err)
	}
}

// FuzzAnswer: any answer of a server, with its packets cut anywhere, gives an error or a result. No
// call panics or hangs.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte{packetName, 0, 0, 0, 1, 0, 0, 0, 1, 'x', 0, 0, 0, 0, 0, 0, 0, 0}, true, false)
	f.Add([]byte{packetName, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0}, true, false)
	f.Add([]byte{packetName}, true, false)
	f.Add([]byte{attrsAnswer, 0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}, true, false)
	f.Add(uint32s(attrsAnswer, 0x05, 0, 10, modeRegular), true, false)
	f.Add([]byte{statusAnswer, 0, 0, 0, 0}, false, false)
	f.Add([]byte{statusAnswer, 0, 0, 0, 2}, true, false)
	f.Add([]byte{statusAnswer}, false, false)
	f.Add([]byte{packetData, 0xff, 0xff, 0xff, 0xff}, true, false)
	f.Add([]byte{packetData, 0, 0, 0, 0}, true, false)
	f.Add([]byte{handleAnswer, 0, 0, 0, 1, 'h'}, false, false)
	f.Add([]byte{0, 0, 0, 5, 2, 0, 0, 0, 3, 0, 0, 0, 9, 101, 0, 0, 0, 1, 0, 0, 0, 0}, false, true)
	f.Add([]byte("Welcome to host!\n"), false, true)
	f.Add([]byte{0, 0, 0, 4, 101, 0, 0, 0, 0}, false, true)
	f.Add([]byte{0, 0, 0, 14, 2, 0, 0, 0, 3, 0, 0, 0, 9, 'x'}, false, true)
	f.Fuzz(func(t *testing.T, answer []byte, opens, raw bool) {
		if len(answer) == 0 || len(answer) > 200<<10 {
			return
		}
		if raw {
			callAll(t, bucketOver(t, func(_ io.Reader, out io.Writer) { _, _ = out.Write(answer) }))
			return
		}
		asked := 0
		callAll(t, answering(t, func(kind byte) []byte {
			asked++
			switch {
			case asked > 100: // ends a directory
				return uint32s(statusAnswer, 4)
			case opens && (kind == open || kind == opendir):
				return append(uint32s(handleAnswer, 1), 'h')
			}
			return answer
		}))
	})
}
