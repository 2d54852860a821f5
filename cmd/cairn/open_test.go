package main

import (
	"encoding/binary"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
	"time"

	"cairn/blob"
	"cairn/store/locate"
)

// TestIndexIsDecodedWhileItComes: a large index takes about its own size of memory, not that again for the file.
func TestIndexIsDecodedWhileItComes(t *testing.T) {
	b, err := blob.NewBuilder(blob.SHA256, blob.Params{Min: 1, Avg: 1, Max: 1})
	if err != nil {
		t.Fatal(err)
	}
	const chunks = 100_000
	for i := range uint64(chunks) {
		var d blob.Digest
		binary.BigEndian.PutUint64(d[:], i)
		if _, err := b.Add(1, d); err != nil {
			t.Fatal(err)
		}
	}
	file := b.Index().Encode()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(file) }))
	t.Cleanup(server.Close)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	location, err := locate.Parse(server.URL + "/x.caibx")
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeIndex(t.Context(), location, access{patience: time.Minute})
	runtime.ReadMemStats(&after)
	if err != nil || got.Len() != chunks {
		t.Fatalf("decodeIndex = %v, %v", got, err)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > uint64(len(file))*3/2 {
		t.Errorf("an index of %d bytes takes %d bytes of memory on its way", len(file), took)
	}
}
