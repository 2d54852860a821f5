package dashboard

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode"
)

// FuzzText: whatever a server answers, only printable text goes to the terminal.
func FuzzText(f *testing.F) {
	now := time.Now()
	wait := Wait{Chunk: "ab\x1b[2J", Since: now, Error: "away\r\n\x07"}
	text, err := json.Marshal(Status{Started: now, Now: now,
		Exports: []Export{{Name: "\x1b]0;x\x07", Waiting: []Wait{wait}}},
		Clients: []Client{{Address: "\u202e", Export: "a\tb"}}, Stores: []Store{{Name: "s\x9b", Up: false}},
		Cache: &Cache{Limit: -1}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"started":"2026-01-01T00:00:00Z","exports":[{"size_bytes":-5,"stall_seconds":1e300}],"cache":{}}`))
	f.Add([]byte(`{}`))
	f.Add([]byte(`<html>`))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := ParseStatus(text)
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := WriteText(&out, s); err != nil {
			t.Fatal(err)
		}
		if i := strings.IndexFunc(out.String(), func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); i >= 0 {
			t.Errorf("%q is printed", out.String()[i:])
		}
	})
}
