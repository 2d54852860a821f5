package store_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"cairn/blob"
	"cairn/store"
	"cairn/store/local"
)

// A store is a bucket, here a directory, with chunks under their digests. A chunk whose file is damaged is not returned.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "store")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	bucket, err := local.Create(dir, local.Options{})
	if err != nil {
		panic(err)
	}

	w, err := store.NewWriter(bucket, store.WriterOptions{})
	if err != nil {
		panic(err)
	}
	defer w.Close()
	data := []byte("the bytes of a chunk")
	digest := blob.SHA512_256.Sum(data)
	if _, err := w.Put(ctx, digest, data); err != nil {
		panic(err)
	}
	if err := w.Commit(ctx); err != nil { // makes it durable under its name
		panic(err)
	}

	chunks := store.NewChunks(bucket, blob.SHA512_256)
	got := make([]byte, len(data))
	err = store.GetOne(ctx, chunks, digest, got)
	fmt.Printf("%s, %v\n", got, err)

	name := filepath.Join(dir, store.ObjectName(digest, true))
	if err := os.WriteFile(name, []byte("damaged"), 0o644); err != nil {
		panic(err)
	}
	fmt.Println("refused:", store.GetOne(ctx, chunks, digest, got) != nil)
	// Output:
	// the bytes of a chunk, <nil>
	// refused: true
}
