package store_test

import (
	"fmt"
	"testing"

	"cairn/blob"
	"cairn/store"
)

// BenchmarkGet gets chunks from memory, one by one and several at once.
func BenchmarkGet(b *testing.B) {
	const count, size = 256, 64 << 10
	var samples []sample
	for i := range count {
		samples = append(samples, newSample(uint64(i), size))
	}
	bucket := bucketOf(b, samples...)
	for _, n := range []int{1, 32} {
		b.Run(fmt.Sprint("at-once-", n), func(b *testing.B) {
			list, g := wants(samples), store.NewChunksAtOnce(bucket, blob.SHA512_256, n)
			b.SetBytes(count * size)
			for b.Loop() {
				if err := store.GetAll(b.Context(), g, list, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
