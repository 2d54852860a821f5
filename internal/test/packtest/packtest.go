// Package packtest packs the chunks of stores. It is for tests.
package packtest

import (
	"testing"

	"cairn/blob"
	"cairn/store"
	"cairn/store/pack"
)

// Pack writes the chunks of x's image for which use returns true from a store into packs of a size, and returns their
// map. A nil use packs all of them.
func Pack(t testing.TB, from store.Reader, to pack.Bucket, x *blob.Index, size int64, use func(chunk int) bool) *pack.Map {
	t.Helper()
	w, err := pack.NewWriter(to, x.Algorithm(), size)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range x.All() {
		if use != nil && !use(i) {
			continue
		}
		file, err := from.Read(t.Context(), store.ObjectName(c.Digest, true), nil, pack.MaxFile)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Add(t.Context(), c.Digest, file); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	m, err := pack.NewMap(x, w.Place)
	if err != nil {
		t.Fatal(err)
	}
	return m
}
