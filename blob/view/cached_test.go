package view

import (
	"testing"

	"cairn/blob/view/fetch"
)

// TestCached: what is here or zero is told as such, as it comes and goes, and to ask fetches nothing.
func TestCached(t *testing.T) {
	image := mixed()
	from, x := holding(t, image), index(t, image)
	v := open(t, x, from, fetch.Options{Bytes: 1 << 20, Fetches: 4})
	cached := func() (here int64) {
		var at int64
		for n, is := range v.Cached(0, v.Size()) {
			if is {
				here += n
			}
			at += n
		}
		if at != v.Size() {
			t.Errorf("Cached reaches up to %d, want %d", at, v.Size())
		}
		return here
	}
	var zeros int64
	for i, c := range x.All() {
		if x.IsZero(i) {
			zeros += c.Size
		}
	}
	if got := cached(); got != zeros {
		t.Errorf("%d bytes are here at first, want the zeros, %d", got, zeros)
	}
	if all, _ := from.asked(); all != 0 {
		t.Errorf("to ask has fetched %d chunks", all)
	}
	if err := v.ReadAt(t.Context(), make([]byte, 1), 0); err != nil {
		t.Fatal(err)
	}
	if got := cached(); got < zeros+x.At(0).Size {
		t.Errorf("%d bytes are here after a read of the first chunk", got)
	}
	for n, is := range v.Cached(10, 5) {
		if n != 5 || !is {
			t.Errorf("Cached(10, 5) yields %d, %v", n, is)
		}
	}
}
