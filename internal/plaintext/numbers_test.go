package plaintext

import (
	"strings"
	"testing"
	"time"
)

func TestNumbers(t *testing.T) {
	for got, want := range map[string]string{
		Size(-1): "0 B", Size(1536): "1.5 KiB", Size(64 << 20): "64 MiB",
		Count(0, "chunk"): "0 chunks", Count(1, "new chunk"): "1 new chunk", Count(1200, "chunk"): "1,200 chunks",
		Duration(1234567 * time.Microsecond): "1.23s", Duration(83456 * time.Millisecond): "1m23s",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestWriteTable(t *testing.T) {
	var b strings.Builder
	if err := WriteTable(&b, [][]string{{"name", "size"}, {"a longer name", "1", ""}, {"a\tb\nc\x1b", "2"}, nil}); err != nil {
		t.Fatal(err)
	}
	if want := "name           size\na longer name  1\na b c\ufffd         2\n\n"; b.String() != want {
		t.Errorf("the table is\n%q, want\n%q", b.String(), want)
	}
}
