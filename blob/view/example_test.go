package view_test

import (
	"bytes"
	"context"
	"fmt"

	"cairn/blob/ingest"
	"cairn/blob/view"
	"cairn/blob/view/fetch"
	"cairn/chunker"
	"cairn/internal/test/mem"
	"cairn/store"
)

// An image whose chunks are in a store can be read at any offset before any of it is on this machine.
func Example() {
	ctx := context.Background()
	var bucket mem.Bucket // any store.Bucket
	w, err := store.NewWriter(&bucket, store.WriterOptions{})
	if err != nil {
		panic(err)
	}
	defer w.Close()
	image := bytes.Repeat([]byte("block device "), 100_000)
	index, _, err := ingest.Image(ctx, chunker.FromReader(bytes.NewReader(image)), w, ingest.Options{Params: chunker.Default})
	if err != nil {
		panic(err)
	}
	if err := w.Commit(ctx); err != nil {
		panic(err)
	}

	memory := fetch.New(ctx, fetch.Options{Bytes: 16 << 20})
	defer memory.Close()
	source := memory.NewSource(store.NewChunks(&bucket, index.Algorithm()), fetch.SourceOptions{})
	v := view.New(index, source, view.Options{})
	defer v.Close()
	p := make([]byte, 12)
	if err := v.ReadAt(ctx, p, 13*50_000); err != nil {
		panic(err)
	}
	fmt.Printf("%s\n", p)
	// Output: block device
}
