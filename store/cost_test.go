package store_test

import (
	"bytes"
	"context"
	"testing"

	"cairn/blob"
	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/store/storetest"
)

// sink is a bucket that counts the writes and discards the data.
type sink struct {
	mem.Bucket
	writes int
}

func (s *sink) Write(context.Context, string, []byte) error {
	s.writes++
	return nil
}

// TestPutAllocatesLittle: Put allocates the chunk's names and makes one write, whatever the chunk's
// size and content.
func TestPutAllocatesLittle(t *testing.T) {
	for name, data := range map[string][]byte{
		"text": bytes.Repeat([]byte("some text "), 10_000), "random": storetest.Bytes(1, 200_000),
	} {
		s, d := new(sink), blob.SHA512_256.Sum(data)
		w := newWriter(t, s, store.WriterOptions{})
		const puts = 100
		perPut := testing.AllocsPerRun(puts-1, func() { // AllocsPerRun makes one more call, first
			if _, err := w.Put(t.Context(), d, data); err != nil {
				t.Fatal(err)
			}
		})
		if perPut > 12 {
			t.Errorf("%s: Put allocates %v times", name, perPut)
		}
		if s.writes != puts {
			t.Errorf("%s: %d writes for %d chunks", name, s.writes, puts)
		}
	}
}
