package seed_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"cairn/blob"
	"cairn/seed"
)

// oldParts returns an index of parts, which are chunks.
func oldParts(t *testing.T, parts ...[]byte) *blob.Index {
	t.Helper()
	b, err := blob.NewBuilder(blob.SHA256, blob.Params{Min: 1, Avg: 8, Max: 16})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range parts {
		if _, err := b.Add(int64(len(p)), blob.SHA256.Sum(p)); err != nil {
			t.Fatal(err)
		}
	}
	return b.Index()
}

// TestOldImage reads an image of which one seed has a part in order, another has a part elsewhere, and
// none has the rest.
func TestOldImage(t *testing.T) {
	random := rand.NewChaCha8([32]byte{})
	part := func(n int) []byte {
		p := make([]byte, n)
		_, _ = random.Read(p)
		return p
	}
	a, b, c, d, zeros, e := part(5), part(9), part(7), part(16), make([]byte, 16), part(3)
	old := oldParts(t, a, b, c, zeros, d, e)
	image := bytes.Join([][]byte{a, b, c, zeros, d, e}, nil)
	first := bytes.Join([][]byte{part(8), a, b}, nil)
	second := bytes.Join([][]byte{e, part(4), c}, nil)
	o := seed.NewOldImage(old,
		seed.Seed{Index: oldParts(t, first[:8], a, b), Data: bytes.NewReader(first)},
		seed.Seed{Index: oldParts(t, e, second[3:7], c), Data: bytes.NewReader(second)})
	missing := int64(len(a) + len(b) + len(c) + len(zeros))
	for off := int64(0); off <= int64(len(image)); off++ {
		for n := int64(1); n <= int64(len(image))-off+1; n++ {
			want := off+n <= int64(len(image)) && (off+n <= missing || off >= missing+int64(len(d)))
			if got := o.Holds(off, n); got != want {
				t.Fatalf("Holds(%d, %d) = %v", off, n, got)
			}
			p := make([]byte, n)
			k, err := o.ReadAt(p, off)
			if want && (err != nil || int64(k) != n || !bytes.Equal(p, image[off:off+n])) {
				t.Fatalf("ReadAt(%d, %d) = %d, %v", off, n, k, err)
			}
			if !want && (err == nil || int64(k) >= n || !bytes.Equal(p[:k], image[off:off+int64(k)])) {
				t.Fatalf("ReadAt(%d, %d) = %d, %v, of what is not held", off, n, k, err)
			}
		}
	}
	if o.Holds(0, 0) || o.Holds(-1, 2) || o.Holds(1<<62, 1<<62) {
		t.Error("Holds of no range")
	}
	if _, err := o.ReadAt(make([]byte, 1), -1); err == nil {
		t.Error("ReadAt before the image")
	}
}
