package view

import (
	"testing"

	"cairn/blob/view/fetch"
)

// TestCached checks that Cached reports zeros and fetched chunks, and fetches nothing itself.
func TestCached(t *testing.T) {
	image := mixed()
	from, x := newOrigin(t, image), index(t, image)
	v := newView(t, x, from, fetch.Options{Bytes: 1 << 20, Fetches: 4})
	cachedBytes := func() (cached int64) {
		var at int64
		for n, is := range v.Cached(0, v.Size()) {
			if is {
				cached += n
			}
			at += n
		}
		if at != v.Size() {
			t.Errorf("Cached yields %d bytes, want %d", at, v.Size())
		}
		return cached
	}
	var zeros int64
	for i, c := range x.All() {
		if x.IsZero(i) {
			zeros += c.Size
		}
	}
	if got := cachedBytes(); got != zeros {
		t.Errorf("%d bytes are cached at first, want the %d zeros", got, zeros)
	}
	if all, _ := from.countRequests(); all != 0 {
		t.Errorf("Cached fetched %d chunks, want 0", all)
	}
	if err := v.ReadAt(t.Context(), make([]byte, 1), 0); err != nil {
		t.Fatal(err)
	}
	if got, want := cachedBytes(), zeros+x.At(0).Size; got < want {
		t.Errorf("%d bytes are cached after a read of the first chunk, want at least %d", got, want)
	}
	for n, is := range v.Cached(10, 5) {
		if n != 5 || !is {
			t.Errorf("Cached(10, 5) yields %d, %v, want 5, true", n, is)
		}
	}
}
