package plaintext

import (
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
