package keep_test

import (
	"bytes"
	"testing"

	"cairn/blob"
	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/store/keep"
	"cairn/store/storetest"
)

func TestIsDamaged(t *testing.T) {
	write := func(b store.Bucket, a blob.Algorithm, data []byte, change func(p []byte) []byte) string {
		t.Helper()
		d := a.Sum(data)
		w, err := store.NewWriter(b, store.WriterOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		if _, err := w.Put(t.Context(), d, data); err != nil {
			t.Fatal(err)
		}
		if err := w.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		name := store.ObjectName(d, true)
		stored, err := b.Read(t.Context(), name, nil, 64<<20)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Write(t.Context(), name, change(stored)); err != nil {
			t.Fatal(err)
		}
		return name
	}
	same := func(p []byte) []byte { return p }
	flip := func(p []byte) []byte { p[len(p)/2] ^= 1; return p }
	empty := func([]byte) []byte { return nil }
	data := storetest.Bytes(1, 10_000)
	for _, c := range []struct {
		name      string
		algorithm blob.Algorithm
		data      []byte
		change    func(p []byte) []byte
		want      bool
	}{
		{"intact", blob.SHA512_256, data, same, false},
		{"intact, SHA-256", blob.SHA256, data, same, false},
		{"flipped", blob.SHA512_256, data, flip, true},
		{"flipped, SHA-256", blob.SHA256, data, flip, true},
		{"empty", blob.SHA512_256, data, empty, true},
		{"large", blob.SHA512_256, bytes.Repeat([]byte("x"), 5<<20), flip, false},
	} {
		b := new(mem.Bucket)
		name := write(b, c.algorithm, c.data, c.change)
		if got := keep.IsDamaged(t.Context(), b, name); got != c.want {
			t.Errorf("%s: IsDamaged = %v", c.name, got)
		}
	}
	if keep.IsDamaged(t.Context(), new(mem.Bucket), store.ObjectName(blob.Digest{}, true)) {
		t.Error("an absent chunk is damaged")
	}
}
