package main

import (
	"bytes"
	"encoding/binary"
	"os"
	"testing"

	"cairn/blob"
	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/store/keep"
	"cairn/store/locate"
)

// TestCopyFindingsAreBounded: the findings of a store that lacks all chunks are not all kept in memory.
func TestCopyFindingsAreBounded(t *testing.T) {
	builder, err := blob.NewBuilder(blob.SHA256, blob.Params{Min: 1, Avg: 1, Max: 1})
	if err != nil {
		t.Fatal(err)
	}
	const lost = keep.MostFindings + 100
	for i := range uint64(lost) {
		if _, err := builder.Add(1, blob.Digest(binary.BigEndian.AppendUint64(make([]byte, 24, 32), i))); err != nil {
			t.Fatal(err)
		}
	}
	var messages bytes.Buffer
	stderr = &messages
	defer func() { stderr = os.Stderr }()
	var f storeCopyFlags
	f.jobs, f.progress, f.level = 2, progressNone, 3
	f.stores = [][]locate.Location{{locate.Path("a")}, {locate.Path("b")}}
	var result storeCopyResult
	if err := f.copyChunks(t.Context(), []store.Reader{new(mem.Bucket)}, new(mem.Bucket), []*blob.Index{builder.Index()}, &result); err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(messages.Bytes(), []byte("missing: ")); n != lost || result.Missing != lost {
		t.Errorf("%d messages about missing chunks, %d counted, want %d", n, result.Missing, lost)
	}
	if len(result.Findings) > keep.MostFindings {
		t.Errorf("%d findings are kept, want %d at most", len(result.Findings), keep.MostFindings)
	}
}
