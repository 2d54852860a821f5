package sftp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
)

// reply is a packet as a server sends it.
func reply(kind byte, number uint32, body ...byte) []byte {
	return append(packet{0, 0, 0, 0, kind, 0, 0, 0, 0}, body...).numbered(number)
}

func TestAnswers(t *testing.T) {
	name := packet(nil).uint32(1).string("x").string("-r--r--r-- x").uint32(attrSize | attrOwner | attrPermissions |
		attrTimes | attrExtended).uint64(7).uint32(1).uint32(2).uint32(0o100444).uint32(3).uint32(4).
		uint32(1).string("key").string("value")
	a, err := readAnswer(bytes.NewReader(reply(typeName, 9, name...)))
	if err != nil || a.number != 9 {
		t.Fatalf("readAnswer = %+v, %v", a, err)
	}
	entries, err := a.entries()
	if err != nil || len(entries) != 1 || entries[0].name != "x" || entries[0].size != 7 || !entries[0].isRegular() ||
		!entries[0].complete() {
		t.Errorf("entries = %+v, %v", entries, err)
	}
	if _, err := a.handle(); !errors.Is(err, errGarbled) {
		t.Errorf("a list of names as a handle = %v, want errGarbled", err)
	}
	denied := answer{typeStatus, 1, packet(nil).uint32(statusDenied).string("Permission\x1b[31m denied").string("en")}
	for what, err := range map[string]error{
		"status": denied.status(), "handle": second(denied.handle()), "data": second(denied.data()),
		"attributes": second(denied.attributes()), "entries": second(denied.entries()),
	} {
		if !hasCode(err, statusDenied) || strings.ContainsRune(err.Error(), 0x1b) {
			t.Errorf("%s of a denial = %q", what, err)
		}
	}
	if err := (answer{typeStatus, 1, []byte{0, 0, 0, 4}}).status(); !hasCode(err, statusFailure) {
		t.Errorf("a status without a message = %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestGarbledAnswers(t *testing.T) {
	for name, in := range map[string]string{
		"a banner":      "Welcome to host!\n",
		"no number":     "\x00\x00\x00\x04\x65\x00\x00\x00\x00",
		"huge":          "\x00\x04\x00\x01\x65\x00\x00\x00\x00",
		"larger":        "\xff\xff\xff\xff\x65\x00\x00\x00\x00",
		"other version": string(reply(typeVersion, 4)),
		"other packet":  string(reply(typeStatus, 3)),
		"bad extension": string(reply(typeVersion, 3, 0, 0, 0, 9, 'x')),
	} {
		a, err := readAnswer(strings.NewReader(in))
		if err == nil {
			_, err = a.extensions()
		}
		if !errors.Is(err, errGarbled) {
			t.Errorf("%s: %v, want errGarbled", name, err)
		}
	}
	whole := reply(typeData, 1, 0, 0, 0, 1, 'x')
	for n := 1; n < len(whole); n++ {
		if _, err := readAnswer(bytes.NewReader(whole[:n])); err != io.ErrUnexpectedEOF {
			t.Errorf("%d bytes of a packet: %v, want io.ErrUnexpectedEOF", n, err)
		}
	}
}

// FuzzAnswer: whatever a server sends is taken apart or refused, and no more comes of it than it has bytes.
func FuzzAnswer(f *testing.F) {
	f.Add(reply(typeName, 1, 0, 0, 0, 1, 0, 0, 0, 1, 'x', 0, 0, 0, 0, 0, 0, 0, 0))
	f.Add(reply(typeName, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0))
	f.Add(reply(typeAttrs, 1, 0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff))
	f.Add(reply(typeStatus, 1, 0, 0, 0, 2))
	f.Add(reply(typeData, 1, 0xff, 0xff, 0xff, 0xff))
	f.Add(reply(typeVersion, 3, 0, 0, 0, 1, 'x', 0, 0, 0, 1, '1'))
	f.Fuzz(func(t *testing.T, in []byte) {
		a, err := readAnswer(bytes.NewReader(in))
		if err != nil {
			return
		}
		if len(a.body) != int(binary.BigEndian.Uint32(in))-5 {
			t.Errorf("a body of %d bytes in a packet of %d", len(a.body), binary.BigEndian.Uint32(in))
		}
		if data, err := a.data(); err == nil && len(data) > len(a.body) {
			t.Errorf("%d bytes came of %d", len(data), len(a.body))
		}
		if entries, err := a.entries(); err == nil && len(entries) > len(a.body)/12 {
			t.Errorf("%d entries came of %d bytes", len(entries), len(a.body))
		}
		if handle, err := a.handle(); err == nil && len(handle) > maxHandle {
			t.Errorf("a handle of %d bytes", len(handle))
		}
		_ = a.status()
		_, _ = a.attributes()
		_, _ = a.extensions()
	})
}
