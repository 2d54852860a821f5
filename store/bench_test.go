package store_test

import (
	"fmt"
	"testing"

	"cairn/store"
)

// BenchmarkGetMany gets chunks from memory, one by one and several at once.
func BenchmarkGetMany(b *testing.B) {
	const count, size = 256, 64 << 10
	var samples []sample
	for i := range count {
		samples = append(samples, newSample(uint64(i), size))
	}
	g := chunksOf(bucketOf(b, samples...))
	for _, n := range []int{1, 32} {
		b.Run(fmt.Sprint("slots-", n), func(b *testing.B) {
			list, slots := wants(samples), make(store.Slots, n)
			b.SetBytes(count * size)
			for b.Loop() {
				if err := store.GetMany(b.Context(), g, list, slots); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
