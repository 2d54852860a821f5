package plaintext

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"testing"
)

func TestPercent(t *testing.T) {
	for _, c := range []struct {
		part, whole int64
		want        string
	}{{0, 0, "-"}, {0, 3, "0.0 %"}, {1, 3, "33.3 %"}, {1 << 62, 1 << 62, "100.0 %"}} {
		if got := Percent(c.part, c.whole); got != c.want {
			t.Errorf("Percent(%d, %d) = %q, want %q", c.part, c.whole, got, c.want)
		}
	}
}

func TestClean(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "größe 1/2": "größe 1/2",
		"a\x00b\x1b[2Jc\n": "a�b�[2Jc ", "a\u202eb\u2066c": "a�b�c", "\xff\xfe": "��",
		strings.Repeat("é", 9): strings.Repeat("é", 9), strings.Repeat("é", 10): strings.Repeat("é", 9) + "…",
	} {
		if got := Clean(text, 9); got != want {
			t.Errorf("Clean(%q) = %q, want %q", text, got, want)
		}
	}
}

func TestLine(t *testing.T) {
	for text, want := range map[string]string{
		" a\nb \n": "a; b ", "a\r\tb\u0085c\u202ed": "a  b c\ufffdd",
		strings.Repeat("x", MaxLine+1): strings.Repeat("x", MaxLine) + "…",
	} {
		if got := Line(text); got != want && got != strings.TrimSpace(want) {
			t.Errorf("Line(%q) = %q, want %q", text, got, want)
		}
	}
}

// TestEscapeJSON: the escaped text has the same value, and only printable characters.
func TestEscapeJSON(t *testing.T) {
	for _, value := range []string{"", "größe", "\x00\x1b\x7f\u0085\u009b31m\u202e\u2066\u00a0\u2028", "\U000e0001😀", "\xff\xfe"} {
		var text bytes.Buffer
		if err := json.NewEncoder(&text).Encode(map[string]string{value: value}); err != nil {
			t.Fatal(err)
		}
		got := EscapeJSON(text.Bytes())
		var before, after map[string]string
		if err := errors.Join(json.Unmarshal(text.Bytes(), &before), json.Unmarshal(got, &after)); err != nil || !maps.Equal(before, after) {
			t.Errorf("EscapeJSON(%q) = %q, %v", text.Bytes(), got, err)
		}
		if clean := Clean(string(got), MaxLine); clean != strings.ReplaceAll(string(got), "\n", " ") {
			t.Errorf("EscapeJSON(%q) = %q", text.Bytes(), got)
		}
	}
	if got := EscapeJSON([]byte("\"\x9b\"")); string(got) != `"\ufffd"` {
		t.Errorf("EscapeJSON of a byte that is not UTF-8 = %q", got)
	}
}
