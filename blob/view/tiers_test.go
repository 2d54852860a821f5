package view

import (
	"bytes"
	"testing"

	"cairn/blob"
	"cairn/blob/view/fetch"
)

// TestTiers checks that Tiers reports zeros and fetched chunks, and fetches nothing itself.
func TestTiers(t *testing.T) {
	image := mixed()
	from, x := newOrigin(t, image), index(t, image)
	v := newView(t, x, from, fetch.Options{Bytes: 1 << 20, Fetches: 4})
	cachedBytes := func() (cached int64) {
		var at int64
		for n, is := range v.Tiers(0, v.Size()) {
			if is == Local {
				cached += n
			}
			at += n
		}
		if at != v.Size() {
			t.Errorf("Tiers yields %d bytes, want %d", at, v.Size())
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
		t.Errorf("Tiers fetched %d chunks, want 0", all)
	}
	if err := v.ReadAt(t.Context(), make([]byte, 1), 0); err != nil {
		t.Fatal(err)
	}
	if got, want := cachedBytes(), zeros+x.At(0).Size; got < want {
		t.Errorf("%d bytes are cached after a read of the first chunk, want at least %d", got, want)
	}
	for n, is := range v.Tiers(10, 5) {
		if n != 5 || is != Local {
			t.Errorf("Tiers(10, 5) yields %d, %v, want 5, Local", n, is)
		}
	}
}

// seedRig is a fetch.Donors with some chunks of an image.
type seedRig struct {
	index *blob.Index
	image []byte
	holds func(i int) bool
}

func (s seedRig) find(digest blob.Digest, size int64) int {
	for i, c := range s.index.All() {
		if c.Digest == digest && c.Size == size && s.holds(i) {
			return i
		}
	}
	return -1
}

func (s seedRig) MayCopy(_ blob.Algorithm, digest blob.Digest, size int64) bool {
	return s.find(digest, size) >= 0
}

func (s seedRig) Copy(_ blob.Algorithm, digest blob.Digest, dst []byte) bool {
	i := s.find(digest, int64(len(dst)))
	if i < 0 {
		return false
	}
	copy(dst, s.image[s.index.At(i).Offset:])
	return true
}

// TestSeedTier: chunks of a seed are a tier of their own until a read makes them local. Neither their read nor the
// neighbours of a miss ask the store for them.
func TestSeedTier(t *testing.T) {
	image := mixed()
	from, x := newOrigin(t, image), index(t, image)
	missing := x.Len() / 2
	for x.IsZero(missing) {
		missing++
	}
	lacks := func(i int) bool { return x.At(i).Digest == x.At(missing).Digest }
	seed := seedRig{x, image, func(i int) bool { return !lacks(i) }}
	v := newView(t, x, from, fetch.Options{Bytes: 1 << 20, Fetches: 4, Seeds: seed})
	at := int64(0)
	for n, tier := range v.Tiers(0, v.Size()) {
		for i, length := range v.chunkParts(at, n) {
			want := InSeed
			switch {
			case x.IsZero(i):
				want = Local
			case lacks(i):
				want = InStore
			}
			if tier != want {
				t.Errorf("%d bytes of chunk %d are in tier %v, want %v", length, i, tier, want)
			}
		}
		at += n
	}
	p := make([]byte, v.Size())
	if err := v.ReadAt(t.Context(), p, 0); err != nil || !bytes.Equal(p, image) {
		t.Fatalf("the read differs, or failed: %v", err)
	}
	if all, _ := from.countRequests(); all != 1 {
		t.Errorf("%d chunks were requested from the store, want 1", all)
	}
	if s := v.Stats(); s.Fetched != 1 || s.SeedChunks == 0 || s.BytesSeeded == 0 {
		t.Errorf("the counts are %+v, want 1 fetched chunk and others from the seed", s.Stats)
	}
}
