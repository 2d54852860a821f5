package export

import (
	"bytes"
	"context"
	"slices"
	"testing"

	"cairn/blob/ingest"
	"cairn/blob/view"
	"cairn/blob/view/fetch"
	"cairn/chunker"
	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/testimages"
)

// newTestDevice returns the device of an image whose chunks are in memory.
func newTestDevice(t *testing.T, image []byte) device {
	t.Helper()
	bucket := &mem.Bucket{}
	w, err := store.NewWriter(bucket, store.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	params := chunker.Params{Min: 1 << 10, Avg: 4 << 10, Max: 16 << 10}
	x, _, err := ingest.Image(t.Context(), chunker.FromReader(bytes.NewReader(image)), w, ingest.Options{Params: params})
	if err != nil {
		t.Fatal(err)
	}
	cache := fetch.New(t.Context(), fetch.Options{})
	t.Cleanup(cache.Close)
	v := view.New(x, cache.NewSource(store.NewChunks(bucket, x.Algorithm()), fetch.SourceOptions{}), view.Options{})
	return device{v}
}

// TestExportIsPadded: an export has whole sectors, and whole blocks of a squashfs. The padding
// reads as zeros and needs no store.
func TestExportIsPadded(t *testing.T) {
	for _, c := range []struct{ size, want int64 }{
		{0, 0}, {1, 1024}, {511, 1024}, {512, 512}, {513, 1024}, {1536, 1536}, {1537, 2048}, {300_001, 300_032}, {300_544, 300_544},
	} {
		image := testimages.Random(1, int(c.size))
		e := newTestDevice(t, image)
		want := append(slices.Clone(image), make([]byte, c.want-c.size)...)
		if e.Size() != c.want {
			t.Errorf("an image of %d bytes is exported as %d, want %d", c.size, e.Size(), c.want)
			continue
		}
		for _, from := range []int64{0, c.size / 2, max(c.size-1, 0), c.size, max(c.want-1, 0), c.want} {
			readBoth(t, e, want[from:], from)
			readBoth(t, e, want[from:max(from, c.want-1)], from)
		}
		if err := e.Prefetch(t.Context(), 0, c.want); err != nil {
			t.Errorf("Prefetch of all = %v", err)
		}
		if err := e.Prefetch(t.Context(), c.size, c.want-c.size); err != nil {
			t.Errorf("Prefetch of the padding = %v", err)
		}
	}
}

// readBoth reads at off with ReadAt and ReadResident.
func readBoth(t *testing.T, e device, want []byte, off int64) {
	t.Helper()
	got := bytes.Repeat([]byte{0xaa}, len(want))
	if err := e.ReadAt(t.Context(), got, off); err != nil || !bytes.Equal(got, want) {
		t.Errorf("ReadAt of %d at %d: %v, or other bytes", len(want), off, err)
	}
	got = bytes.Repeat([]byte{0xaa}, len(want))
	if !e.ReadResident(got, off) || !bytes.Equal(got, want) {
		t.Errorf("ReadResident of %d at %d: false, or other bytes", len(want), off)
	}
}

// TestPaddingIsKnown: extents and states include the padding, also a part of it.
func TestPaddingIsKnown(t *testing.T) {
	const size, end = 300_001, 300_032
	e := newTestDevice(t, testimages.Random(1, size))
	for _, c := range []struct{ off, n, data, zero int64 }{
		{0, end, size, end - size}, {size - 5, 10, 5, 5}, {size, 31, 0, 31}, {end - 1, 1, 0, 1}, {size - 5, 5, 5, 0},
	} {
		var data, zero, here int64
		for x := range e.Extents(c.off, c.n) {
			if x.Zero {
				zero += x.Length
			} else {
				data += x.Length
			}
		}
		for s := range e.States(contextCached, c.off, c.n) {
			if s.Bits == stateCached {
				here += s.Length
			}
		}
		if data != c.data || zero != c.zero || here != c.zero {
			t.Errorf("%d at %d: %d data, %d zeros and %d cached, want %d, %d and %d", c.n, c.off, data, zero, here, c.data, c.zero, c.zero)
		}
	}
	for range e.Extents(0, end) {
		break // as for a client that requests one extent
	}
	for range e.Extents(size, 31) {
		break
	}
	if err := e.ReadAt(context.Background(), make([]byte, 1), -1); err == nil {
		t.Error("a read before the start succeeded")
	}
}
