package fetch

import (
	"context"
	"sync"
	"testing"

	"cairn/blob"
	"cairn/store"
)

// deltaRig makes some chunks of an image.
type deltaRig struct {
	store *chunkStore
	makes map[blob.Digest]bool // false: it says that it may make the chunk, and fails

	mu    sync.Mutex // guards tried
	tried map[blob.Digest]int
}

func (d *deltaRig) MayMake(digest blob.Digest, _ int64) bool {
	_, may := d.makes[digest]
	return may
}

func (d *deltaRig) Make(_ context.Context, digest blob.Digest, dst []byte) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tried[digest]++
	if !d.makes[digest] {
		return false
	}
	copy(dst, d.store.data[digest])
	return true
}

// TestDelta: of the chunks that are neither on disk nor in a seed, those of a delta are made. The store is asked for
// the others, and for those that the delta fails to make.
func TestDelta(t *testing.T) {
	image := random(1, 12)
	from, x := newChunkStore(t, image), index(t, image)
	seeds := donorsOf(x, image, 0, 4)
	deltas := &deltaRig{store: from, makes: map[blob.Digest]bool{}, tried: map[blob.Digest]int{}}
	for i := 2; i < 10; i++ { // 2 and 3 are in the seed; 8 and 9 fail
		deltas.makes[x.At(i).Digest] = i < 8
	}
	cache := New(t.Context(), Options{Seeds: seeds})
	t.Cleanup(cache.Close)
	r := newReader(t, cache.NewSource(from, SourceOptions{Deltas: deltas}), image, ClientOptions{})
	for i, c := range x.All() {
		if want := 2 <= i && i < 10; r.InDelta(c) != want {
			t.Errorf("chunk %d may be made: %v, want %v", i, !want, want)
		}
	}
	r.checkRead(t, 0, 12)
	from.checkOnce(t, x, 8, 12)
	for i := range 12 {
		if n := deltas.tried[x.At(i).Digest]; n != 0 && i < 4 || n != 1 && i >= 4 {
			t.Errorf("chunk %d was tried %d times", i, n)
		}
	}
	s := r.Stats()
	if s.SeedChunks != 4 || s.DeltaChunks != 4 || s.BytesMade != 4*chunkSize || s.Fetched != 4 || s.BytesFetched != 4*chunkSize {
		t.Errorf("the counts are %+v", s)
	}
}

// TestDeltaIsNotTheStore: a chunk from a delta does not end an outage of the store.
func TestDeltaIsNotTheStore(t *testing.T) {
	image := random(1, 4)
	from, x := newChunkStore(t, image), index(t, image)
	from.failAll(store.ErrUnavailable)
	deltas := &deltaRig{store: from, makes: map[blob.Digest]bool{x.At(1).Digest: true}, tried: map[blob.Digest]int{}}
	cache := New(t.Context(), Options{})
	t.Cleanup(cache.Close)
	source := cache.NewSource(from, SourceOptions{Deltas: deltas})
	r := newReader(t, source, image, ClientOptions{})
	if _, err := r.readChunks(t.Context(), 0, 1); err == nil {
		t.Error("a chunk was read from the store")
	}
	r.checkRead(t, 1, 2)
	cache.mu.Lock()
	defer cache.mu.Unlock()
	if source.failures == 0 {
		t.Error("the store counts as available")
	}
}

// rangeDonors are Donors of the chunks [lo, hi) of an image.
type rangeDonors map[blob.Digest][]byte

func donorsOf(x *blob.Index, image []byte, lo, hi int) rangeDonors {
	d := rangeDonors{}
	for _, c := range x.Range(lo, hi) {
		d[c.Digest] = image[c.Offset:c.End()]
	}
	return d
}

func (d rangeDonors) MayCopy(_ blob.Algorithm, digest blob.Digest, _ int64) bool {
	return d[digest] != nil
}

func (d rangeDonors) Copy(_ blob.Algorithm, digest blob.Digest, dst []byte) bool {
	return copy(dst, d[digest]) == len(dst)
}
