package cachedir

import (
	"context"
	"testing"

	"cairn/store"
	"cairn/store/local"
)

// BenchmarkWrite compares the cost of keeping a chunk with a bucket that does not count.
func BenchmarkWrite(b *testing.B) {
	d := Open(b.TempDir(), Options{})
	defer d.Close()
	plain := local.At(b.TempDir(), local.Options{})
	batch, err := plain.NewBatch()
	if err != nil {
		b.Fatal(err)
	}
	defer batch.Close()
	s := newSample(1, 30*kib)
	for name, to := range map[string]store.Batch{"cachedir": bucketBatch{d}, "local": batch} {
		b.Run(name, func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				if err := to.Write(b.Context(), millionth(i%10_000), s.data); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// bucketBatch writes at once.
type bucketBatch struct{ store.Bucket }

func (bucketBatch) Commit(context.Context) error { return nil }
func (bucketBatch) Close() error                 { return nil }

// BenchmarkRead measures a cache hit.
func BenchmarkRead(b *testing.B) {
	d := Open(b.TempDir(), Options{})
	defer d.Close()
	s := newSample(1, 30*kib)
	if err := d.Write(b.Context(), s.name(), s.data); err != nil {
		b.Fatal(err)
	}
	var buf []byte
	for name, from := range map[string]store.Reader{"cachedir": d, "local": d.files} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				buf, _ = from.Read(b.Context(), s.name(), buf[:0], 1<<20)
			}
		})
	}
}
