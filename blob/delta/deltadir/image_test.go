package deltadir

import (
	"testing"

	"cairn/blob"
)

// ones is a file of one-bits.
type ones struct{}

func (ones) ReadAt(p []byte, _ int64) (int, error) {
	for i := range p {
		p[i] = 0xff
	}
	return len(p), nil
}

// TestCacheIsBounded: the chunks of an image in memory have a limit.
func TestCacheIsBounded(t *testing.T) {
	const size, chunks = 1 << 20, cacheSize>>20 + 20
	b, err := blob.NewBuilder(blob.SHA256, blob.Params{Min: 1, Avg: size, Max: size})
	if err != nil {
		t.Fatal(err)
	}
	chunk := make([]byte, size)
	if _, err := (ones{}).ReadAt(chunk, 0); err != nil {
		t.Fatal(err)
	}
	digest := blob.SHA256.Sum(chunk)
	for range chunks {
		if _, err := b.Add(size, digest); err != nil {
			t.Fatal(err)
		}
	}
	m, err := OpenImage(t.Context(), b.Index(), Source{File: ones{}})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for i := range int64(chunks) {
		if _, err := m.ReadAt(chunk[:100], i*size+5); err != nil {
			t.Fatal(err)
		}
	}
	if m.bytes != cacheSize || len(m.cached) != cacheSize/size || m.recent.Len() != len(m.cached) {
		t.Errorf("%d chunks of %d bytes are in memory, want %d bytes", len(m.cached), m.bytes, cacheSize)
	}
}
