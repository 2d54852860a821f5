package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode"

	"cairn/internal/dashboard"
)

// FuzzStatus: whatever a server answers, nothing but text goes to the terminal, and it is printed or refused.
func FuzzStatus(f *testing.F) {
	now := time.Now()
	wait := dashboard.Wait{Chunk: "ab\x1b[2J", Since: now, Error: "away\r\n\x07"}
	text, err := json.Marshal(dashboard.Status{Started: now, Now: now,
		Exports: []dashboard.Export{{Name: "\x1b]0;x\x07", Waiting: []dashboard.Wait{wait}}},
		Clients: []dashboard.Client{{Address: "\u202e", Export: "a\tb"}}, Stores: []dashboard.Store{{Name: "s\x9b", Up: false}},
		Cache: &dashboard.Cache{Limit: -1}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"started":"2026-01-01T00:00:00Z","exports":[{"size_bytes":-5,"stall_seconds":1e300}],"cache":{}}`))
	f.Add([]byte(`{}`))
	f.Add([]byte(`<html>`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var out bytes.Buffer
		if err := printStatus(&out, text, false, false); err != nil {
			if out.Len() > 0 || !strings.Contains(err.Error(), "not cairn serve's") {
				t.Errorf("%q is refused with %v, and %d bytes are printed", text, err, out.Len())
			}
			return
		}
		if i := strings.IndexFunc(out.String(), func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); i >= 0 {
			t.Errorf("%q is printed", out.String()[i:])
		}
	})
}
