package chunker_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"

	"cairn/chunker"
)

// Cuts depend on the content. Inserted bytes change only the chunks around them.
func Example() {
	random := rand.NewChaCha8([32]byte{1})
	before := make([]byte, 4<<20)
	random.Read(before)
	after := bytes.Join([][]byte{before[:1<<20], []byte("inserted"), before[1<<20:]}, nil)

	known := digests(before)
	changed := 0
	for d := range digests(after) {
		if !known[d] {
			changed++
		}
	}
	fmt.Println("at most three chunks changed:", changed >= 1 && changed <= 3)
	// Output: at most three chunks changed: true
}

// digests returns the digests of the image's chunks.
func digests(image []byte) map[[sha256.Size]byte]bool {
	found := map[[sha256.Size]byte]bool{}
	stages := chunker.Stages{Order: func(_ context.Context, b *chunker.Batch) error {
		for _, c := range b.Chunks {
			found[sha256.Sum256(c.Data)] = true
		}
		return nil
	}}
	source := chunker.FromReaderAt(bytes.NewReader(image), int64(len(image)))
	if _, err := chunker.Split(context.Background(), source, chunker.Default, 2, stages); err != nil {
		panic(err)
	}
	return found
}
