package fetch

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cairn/blob"
	"cairn/store"
)

// packedStore is a store whose chunks are in packs of ten. It records how many chunks each call wants.
type packedStore struct {
	*chunkStore
	pack map[blob.Digest]int // number of the chunk's pack

	mu    sync.Mutex // guards calls
	calls []int
}

func newPackedStore(t testing.TB, image []byte) *packedStore {
	s := &packedStore{chunkStore: newChunkStore(t, image), pack: map[blob.Digest]int{}}
	for i, c := range index(t, image).All() {
		s.pack[c.Digest] = i / 10
	}
	return s
}

func (s *packedStore) IsPacked(d blob.Digest) bool { _, ok := s.pack[d]; return ok }
func (s *packedStore) Near(a, b blob.Digest) bool {
	return s.IsPacked(a) && s.IsPacked(b) && s.pack[a] == s.pack[b]
}

func (s *packedStore) Get(ctx context.Context, wants []store.Want, done func(i int, err error)) {
	s.mu.Lock()
	s.calls = append(s.calls, len(wants))
	s.mu.Unlock()
	s.chunkStore.Get(ctx, wants, done)
}

func (s *packedStore) takeCalls() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := s.calls
	s.calls = nil
	return calls
}

// roomyLink is a link with room for some bytes.
type roomyLink int64

func (l roomyLink) Product() int64             { return int64(l) }
func (l roomyLink) Budget(time.Duration) int64 { return int64(l) }

// TestRuns: packed chunks that are demanded or prefetched together are one call of the store. Others are one call each.
func TestRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 60)
		from := newPackedStore(t, image)
		cache := New(t.Context(), Options{})
		defer cache.Close()
		r := newReader(t, cache.NewSource(from, SourceOptions{Packs: from, Link: roomyLink(1 << 20)}), image, ClientOptions{})
		for i := 50; i < 60; i++ {
			delete(from.pack, r.index.At(i).Digest)
		}
		check := func(what string, want ...int) {
			t.Helper()
			synctest.Wait()
			got := from.takeCalls()
			if slices.Sort(got); !slices.Equal(got, want) {
				t.Errorf("%s: calls for %v chunks, want %v", what, got, want)
			}
		}
		r.checkRead(t, 0, 7)
		check("a read", 7)
		r.Prefetch(5, 20, ReadAhead)
		check("a prefetch", 13)
		r.PrefetchNeighbours(18, 35, 25)
		check("neighbours of a packed chunk", 10)
		r.PrefetchNeighbours(45, 53, 52)
		check("neighbours of another chunk", 1, 1, 1, 5)
		r.checkRead(t, 56, 58)
		check("a read of others", 1, 1)
		r.checkRead(t, 0, 60)
		synctest.Wait()
		from.takeCalls()
		from.checkOnce(t, r.index, 0, 60)
	})
}

// TestFeedOfRuns: a feed requests runs of packed chunks, of half the bytes that may be in flight.
func TestFeedOfRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 100)
		from := newPackedStore(t, image)
		from.latency = time.Second
		cache := New(t.Context(), Options{})
		defer cache.Close()
		r := newReader(t, cache.NewSource(from, SourceOptions{Packs: from, Link: roomyLink(40 * chunkSize)}), image, ClientOptions{})
		r.StartFeed(&listFeed{list: firstChunks(100)}, Profile, 0)
		time.Sleep(time.Minute)
		for _, n := range from.takeCalls() {
			if n < 20 || n > 40 {
				t.Errorf("a call for %d chunks, want 20 to 40", n)
			}
		}
		from.checkOnce(t, r.index, 0, 100)
	})
}

// TestFailedRun: chunks of a run that fail are requested again, each by itself, and reads wait for them as for others.
func TestFailedRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 10)
		from := newPackedStore(t, image)
		cache := New(t.Context(), Options{})
		defer cache.Close()
		r := newReader(t, cache.NewSource(from, SourceOptions{Packs: from}), image, ClientOptions{Hold: time.Minute})
		from.failAll(store.ErrUnavailable)
		time.AfterFunc(10*time.Second, func() { from.failAll(nil) })
		r.checkRead(t, 0, 5)
		if calls := from.takeCalls(); calls[0] != 5 || slices.Max(calls[1:]) != 1 {
			t.Errorf("calls for %v chunks, want 5, then 1 each", calls)
		}
	})
}

// TestDeltaBeforePack: a packed chunk that a delta may make is not part of a run.
func TestDeltaBeforePack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 10)
		from := newPackedStore(t, image)
		deltas := &deltaRig{store: from.chunkStore, makes: map[blob.Digest]bool{}, tried: map[blob.Digest]int{}}
		cache := New(t.Context(), Options{})
		defer cache.Close()
		r := newReader(t, cache.NewSource(from, SourceOptions{Packs: from, Deltas: deltas}), image, ClientOptions{})
		deltas.makes[r.index.At(2).Digest], deltas.makes[r.index.At(3).Digest] = true, false
		r.checkRead(t, 0, 10)
		calls := from.takeCalls()
		slices.Sort(calls)
		if want := []int{1, 8}; !slices.Equal(calls, want) {
			t.Errorf("calls for %v chunks, want %v", calls, want)
		}
	})
}
