package columns

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"testing"
)

func compress(t testing.TB, table []byte) []byte {
	t.Helper()
	b, err := Compress(table)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRead(t *testing.T) {
	var table []byte
	table = append(table, 7, 'a', 'b', 'c')
	unsigned := []uint64{0, 1, 127, 128, 1 << 40, math.MaxUint64}
	signed := []int64{0, -1, 1, math.MinInt64, math.MaxInt64}
	for _, v := range unsigned {
		table = binary.AppendUvarint(table, v)
	}
	for _, v := range signed {
		table = binary.AppendVarint(table, v)
	}
	err := Read(compress(t, table), 1<<10, func(c *Reader) {
		word := make([]byte, 3)
		if got := c.Byte(); got != 7 {
			t.Errorf("Byte = %d, want 7", got)
		}
		if c.Bytes(word); string(word) != "abc" {
			t.Errorf("Bytes = %q, want abc", word)
		}
		for _, want := range unsigned {
			if got := c.Uvarint(math.MaxUint64); got != want {
				t.Errorf("Uvarint = %d, want %d", got, want)
			}
		}
		for _, want := range signed {
			if got := c.Varint(); got != want {
				t.Errorf("Varint = %d, want %d", got, want)
			}
		}
	})
	if err != nil {
		t.Error(err)
	}
}

// TestReadRefuses: other tables are errors, and nothing but zeros is decoded after the first error.
func TestReadRefuses(t *testing.T) {
	number := func(limit uint64) func(c *Reader) { return func(c *Reader) { c.Uvarint(limit) } }
	for name, c := range map[string]struct {
		table  []byte
		decode func(c *Reader)
	}{
		"no frame":    {[]byte("no frame"), func(*Reader) {}},
		"trailing":    {compress(t, []byte{1, 2}), number(10)},
		"too large":   {compress(t, []byte{11}), number(10)},
		"longer":      {compress(t, []byte{0x81, 0}), number(10)},
		"65 bits":     {compress(t, append(bytes.Repeat([]byte{0xff}, 9), 2)), number(math.MaxUint64)},
		"ten bytes":   {compress(t, bytes.Repeat([]byte{0x80}, 11)), number(math.MaxUint64)},
		"short":       {compress(t, []byte{0x80}), number(10)},
		"short bytes": {compress(t, []byte{1, 2}), func(c *Reader) { c.Bytes(make([]byte, 3)) }},
		"over limit":  {compress(t, make([]byte, 1000)), func(c *Reader) { c.Bytes(make([]byte, 1000)) }},
	} {
		err := Read(c.table, 999, func(r *Reader) {
			c.decode(r)
			if r.Err() != nil && (r.Byte() != 0 || r.Uvarint(10) != 0 || r.Varint() != 0) {
				t.Errorf("%s: decoded more than zeros after %v", name, r.Err())
			}
		})
		if err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: %v, want an error about the content", name, err)
		}
	}
}
