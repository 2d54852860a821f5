package fetch

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cairn/blob"
	"cairn/store"
)

// checkMemory checks the counters and the limit of the memory.
func checkMemory(t testing.TB, c *Cache) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	m := &c.memory
	var sum int64
	for at := m.recent.Front(); at != nil; at = at.Next() {
		sum += int64(len(at.Value.(*Entry).data))
	}
	if sum != m.bytes || sum > max(m.limit, chunkSize) {
		t.Errorf("the memory holds %d bytes, counts %d, and its limit is %d", sum, m.bytes, m.limit)
	}
	if m.recent.Len() > 1 && m.usedBytes() > m.limit {
		t.Errorf("the memory holds %d bytes, and %d for fetches, and its limit is %d", sum, m.reserved, m.limit)
	}
	if len(m.places) != m.recent.Len() {
		t.Errorf("%d chunks are in memory, %d in places", m.recent.Len(), len(m.places))
	}
}

// TestOneFetch checks that concurrent reads of a chunk share one fetch, and none blocks for longer than that.
func TestOneFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 100)
		from := newChunkStore(t, image)
		from.latency = time.Second
		r := newOwnReader(t, image, from, Options{Fetches: 1000})
		start := time.Now()
		var wg sync.WaitGroup
		for range 30 {
			wg.Go(func() { r.checkRead(t, 20, 80) })
		}
		wg.Wait()
		from.checkOnce(t, r.index, 20, 80)
		if took := time.Since(start); took != time.Second {
			t.Errorf("the reads took %v, want %v", took, time.Second)
		}
	})
}

// TestMemoryKeepsNoClient checks that a chunk in memory does not keep the client that fetched it, and with it the index
// of an image that is closed.
func TestMemoryKeepsNoClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 10)
		r := newOwnReader(t, image, newChunkStore(t, image), Options{})
		r.checkRead(t, 0, 5)
		r.StartFeed(&listFeed{list: []int{5, 6, 7}, budget: Budget{Delay: time.Second}}, Profile, 0)
		synctest.Wait()
		r.StopFeeds()
		synctest.Wait()
		if n := r.countInMemory(); n < 6 {
			t.Fatalf("%d chunks are in memory", n)
		}
		for e := range r.cache.entries() {
			if e.client != nil || e.receivers != nil {
				t.Errorf("chunk %d refers to its client", e.chunk)
			}
		}
	})
}

// TestFetches checks that the in-flight limit is reached and not exceeded.
func TestFetches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 23)
		from := newChunkStore(t, image)
		from.latency = time.Second
		r := newOwnReader(t, image, from, Options{Fetches: 5})
		start := time.Now()
		r.checkRead(t, 0, 23)
		if from.most != 5 || time.Since(start) != 5*time.Second {
			t.Errorf("%d fetches at once, in %v; want 5, 5s", from.most, time.Since(start))
		}
	})
}

// TestLimit checks that reads of two images larger than the memory stay within its limit.
func TestLimit(t *testing.T) {
	const limit = 17 * chunkSize
	a, b := random(1, 80), random(2, 80)
	cache := New(t.Context(), Options{Bytes: limit})
	defer cache.Close()
	source := cache.NewSource(newChunkStore(t, a, b), SourceOptions{})
	var wg sync.WaitGroup
	for _, image := range [][]byte{a, b} {
		r := newReader(t, source, image, ClientOptions{})
		wg.Go(func() {
			for i := range 78 {
				r.checkRead(t, i, i+3)
				checkMemory(t, cache)
			}
		})
	}
	wg.Wait()
	if used, most := cache.Usage(); most != limit || used > most || used < most-chunkSize {
		t.Errorf("Usage() = %d, %d, want nearly %d", used, most, limit)
	}
}

// TestLeastRecentlyUsedEvicted checks that a chunk that is read again and again is not evicted.
func TestLeastRecentlyUsedEvicted(t *testing.T) {
	image := random(1, 100)
	from := newChunkStore(t, image)
	r := newOwnReader(t, image, from, Options{Bytes: 10 * chunkSize})
	for i := range 100 {
		r.checkRead(t, i, i+1)
		r.checkRead(t, 0, 1)
	}
	from.checkOnce(t, r.index, 0, 100)
	if got := r.countInMemory(); got != 10 {
		t.Errorf("%d chunks are in memory, want 10", got)
	}
}

// TestLookup checks that Lookup finds chunks in memory and counts as a use, and that InMemory does not.
func TestLookup(t *testing.T) {
	image := random(1, 10)
	r := newOwnReader(t, image, newChunkStore(t, image), Options{Bytes: 2 * chunkSize})
	first, second := r.index.At(0), r.index.At(1)
	if r.Lookup(first) != nil || r.InMemory(first) {
		t.Error("a chunk is in memory before it was fetched")
	}
	r.checkRead(t, 0, 1)
	r.checkRead(t, 1, 2)
	if data := r.Lookup(first); string(data) != string(image[:chunkSize]) || !r.InMemory(second) {
		t.Errorf("Lookup = %d wrong bytes", len(data))
	}
	r.InMemory(second)
	r.checkRead(t, 2, 3)
	if !r.InMemory(first) || r.InMemory(second) {
		t.Error("the chunk that was used last was evicted")
	}
	if n := testing.AllocsPerRun(100, func() { r.Lookup(first) }); n != 0 {
		t.Errorf("Lookup allocates %v times", n)
	}
}

// TestLargeChunk checks that a chunk larger than the memory is kept alone.
func TestLargeChunk(t *testing.T) {
	image := random(1, 5)
	from := newChunkStore(t, image)
	r := newOwnReader(t, image, from, Options{Bytes: 100})
	for i := range 5 {
		r.checkRead(t, i, i+1)
		r.checkRead(t, i, i+1)
	}
	from.checkOnce(t, r.index, 0, 5)
	r.checkRead(t, 0, 5)
}

// TestPrefetch checks that Prefetch returns at once, fetches each chunk once, and at most half of the memory at once.
func TestPrefetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 100)
		from := newChunkStore(t, image)
		from.latency = time.Minute
		r := newOwnReader(t, image, from, Options{Bytes: 40 * chunkSize, Fetches: 3})
		start := time.Now()
		r.Prefetch(5, 15, ReadAhead)
		r.Prefetch(5, 15, ReadAhead)
		if time.Since(start) != 0 {
			t.Errorf("Prefetch took %v, want no time", time.Since(start))
		}
		time.Sleep(time.Hour)
		from.checkOnce(t, r.index, 5, 15)
		r.Prefetch(15, 100, ReadAhead)
		time.Sleep(24 * time.Hour)
		from.checkOnce(t, r.index, 5, 15+20)
		if from.most != 3 {
			t.Errorf("%d fetches at once, want 3", from.most)
		}
		if n := len(r.noted.prefetching); n != 30 {
			t.Errorf("%d calls of Prefetching, want 30", n)
		}
	})
}

// TestDemandFirst checks that a demand fetch overtakes prefetches, also if its chunk is queued as one.
func TestDemandFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 300)
		from := newChunkStore(t, image)
		from.latency = time.Second
		r := newOwnReader(t, image, from, Options{Fetches: 8})
		r.Prefetch(0, 200, ReadAhead)
		synctest.Wait()
		for _, i := range []int{199, 250} {
			start := time.Now()
			r.checkRead(t, i, i+1)
			if took := time.Since(start); took > time.Second {
				t.Errorf("reading chunk %d beside prefetches took %v, want 1s", i, took)
			}
		}
	})
}

// TestPrefetchFailure checks that a read after a failed prefetch fetches the chunk again.
func TestPrefetchFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 1)
		from := newChunkStore(t, image)
		from.failAll(store.ErrUnavailable)
		r := newOwnReader(t, image, from, Options{})
		r.Prefetch(0, 1, ReadAhead)
		synctest.Wait()
		from.failAll(nil)
		r.checkRead(t, 0, 1)
		if len(r.noted.lost) != 1 {
			t.Errorf("Lost was called for the chunks %v, want one", r.noted.lost)
		}
	})
}

// TestClose checks that the end of the context or Close ends the fetches. synctest fails the test if a goroutine
// remains.
func TestClose(t *testing.T) {
	for name, end := range map[string]func(cancel context.CancelFunc, c *Cache){
		"closed":              func(_ context.CancelFunc, c *Cache) { c.Close() },
		"cancelled, closed":   func(cancel context.CancelFunc, c *Cache) { cancel(); c.Close() },
		"cancelled, no close": func(cancel context.CancelFunc, _ *Cache) { cancel() },
	} {
		synctest.Test(t, func(t *testing.T) {
			image := random(1, 30)
			from := newChunkStore(t, image)
			from.latency = time.Hour
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			cache := New(ctx, Options{Fetches: 2})
			r, start := newReader(t, cache.NewSource(from, SourceOptions{}), image, ClientOptions{}), time.Now()
			for range 3 {
				go func() {
					if _, err := r.readChunks(t.Context(), 5, 8); !errors.Is(err, context.Canceled) {
						t.Errorf("%s: read = %v, want %v", name, err, context.Canceled)
					}
				}()
			}
			r.Prefetch(0, 30, ReadAhead)
			r.StartFeed(&listFeed{list: firstChunks(30)}, Profile, 0)
			synctest.Wait()
			end(cancel, cache)
			synctest.Wait()
			before, now := from.countRequests()
			if now != 0 || time.Since(start) != 0 {
				t.Errorf("%s: %d fetches are in flight after %v, want 0 at once", name, now, time.Since(start))
			}
			r.Prefetch(0, 30, ReadAhead)
			if _, err := r.readChunks(t.Context(), 0, 1); !errors.Is(err, context.Canceled) {
				t.Errorf("%s: read = %v, want %v", name, err, context.Canceled)
			}
			if after, _ := from.countRequests(); after != before {
				t.Errorf("%s: %d fetches started afterwards", name, after-before)
			}
		})
	}
}

// TestCloseBesideReads checks that Close beside concurrent reads leaves no fetch in flight, and that none starts
// later.
func TestCloseBesideReads(t *testing.T) {
	image := random(1, 30)
	for range 50 {
		from := newChunkStore(t, image)
		cache := New(t.Context(), Options{Bytes: 5 * chunkSize})
		r := newReader(t, cache.NewSource(from, SourceOptions{}), image, ClientOptions{})
		var wg sync.WaitGroup
		begun := make(chan struct{}, 4)
		for range 4 {
			wg.Go(func() {
				for err := error(nil); err == nil; {
					_, err = r.readChunks(t.Context(), 0, 15)
					begun <- struct{}{}
				}
			})
		}
		go func() {
			wg.Wait()
			close(begun)
		}()
		<-begun
		cache.Close()
		before, now := from.countRequests()
		for range begun { // until the readers have ended
		}
		if after, _ := from.countRequests(); now != 0 || after != before {
			t.Fatalf("%d fetches were in flight after Close, and %d started later", now, after-before)
		}
	}
}

// TestTwoImages checks that a chunk of two images is fetched once. If the first image's store fails, the second
// image's store is asked.
func TestTwoImages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := random(1, 70)
		a, b := append(random(2, 3), shared...), append(random(3, 3), shared...)
		cache := New(t.Context(), Options{})
		defer cache.Close()
		good, bad := newChunkStore(t, a, b), newChunkStore(t, a, b)
		good.latency, bad.latency = time.Second, time.Second
		bad.failAll(store.ErrDenied)
		rb := newReader(t, cache.NewSource(good, SourceOptions{}), b, ClientOptions{})
		ra := newReader(t, cache.NewSource(bad, SourceOptions{}), a, ClientOptions{})
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := ra.readChunks(t.Context(), 0, 73); !errors.Is(err, store.ErrDenied) {
				t.Errorf("a read with a bad store = %v, want %v", err, store.ErrDenied)
			}
		})
		synctest.Wait()
		rb.checkRead(t, 0, 73)
		wg.Wait()
		ra.checkRead(t, 3, 73) // from memory
		good.checkOnce(t, rb.index, 0, 73)
	})
}

// TestUnreadOfAnother checks that a chunk that one client's feed prefetched and another client reads counts as read.
func TestUnreadOfAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 70)
		cache := New(t.Context(), Options{Bytes: 16 * chunkSize})
		defer cache.Close()
		source := cache.NewSource(newChunkStore(t, image), SourceOptions{})
		a, b := newReader(t, source, image, ClientOptions{}), newReader(t, source, image, ClientOptions{})
		a.StartFeed(&listFeed{list: []int{0, 1}}, Profile, 0)
		synctest.Wait()
		if a.unread != 2*chunkSize {
			t.Errorf("%d bytes count as unread, want %d", a.unread, 2*chunkSize)
		}
		b.MarkRead(b.index.At(0))
		b.checkRead(t, 20, 70) // evicts the other one
		if a.unread != 0 || b.unread != 0 {
			t.Errorf("%d and %d bytes count as unread, want none", a.unread, b.unread)
		}
	})
}

// TestDisk checks that chunks on disk are not fetched, and that claimed chunks are verified. Damaged ones are
// fetched, as demand fetches if a read waits. Fetched chunks are offered to the disk.
func TestDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 10)
		from, d := newChunkStore(t, image), newDisk()
		for i := range 4 {
			d.claimed[i] = image[i*chunkSize : (i+1)*chunkSize]
		}
		d.claimed[3] = d.claimed[3][1:]
		d.data[9] = d.claimed[0]
		cache := New(t.Context(), Options{})
		defer cache.Close()
		source := cache.NewSource(from, SourceOptions{})
		r := newReader(t, source, image, ClientOptions{Disk: d})
		if entries, missing := r.Request(9, 10); entries[0] != nil || missing {
			t.Error("a chunk on disk is requested")
		}
		r.Prefetch(3, 4, ReadAhead)
		entries, missing := r.Request(3, 4)
		<-entries[0].ready
		if missing || entries[0].at != source || entries[0].priority != Demand {
			t.Errorf("the damaged chunk came from the store with priority %d, want %d", entries[0].priority, Demand)
		}
		r.checkRead(t, 0, 9)
		synctest.Wait()
		if got := r.Stats(); got.ProvenChunks != 3 || got.Fetched != 6 || got.BytesFetched != 6*chunkSize || len(d.data) != 10 {
			t.Errorf("Stats() = %+v, with %d chunks on disk; want 3 proven, 6 fetched, 10 on disk", got, len(d.data))
		}
		from.checkOnce(t, r.index, 3, 9)
		if len(r.noted.missed) != 5 {
			t.Errorf("missed chunks are %v, want the five that were not on disk", r.noted.missed)
		}
	})
}

// TestProofBesideReads lets the race detector watch reads of chunks that are being verified.
func TestProofBesideReads(t *testing.T) {
	image := random(1, 40)
	cache := New(t.Context(), Options{Bytes: 10 * chunkSize})
	defer cache.Close()
	source := cache.NewSource(newChunkStore(t, image), SourceOptions{})
	var wg sync.WaitGroup
	for range 4 {
		d := newDisk()
		for i := range 40 {
			d.claimed[i] = image[i*chunkSize : (i+1)*chunkSize]
		}
		r := newReader(t, source, image, ClientOptions{Disk: d})
		wg.Go(func() { r.checkRead(t, 0, 40) })
		wg.Go(func() { r.Prefetch(0, 40, ReadAhead) })
	}
	wg.Wait()
}

// donors is a Donors with one chunk.
type donors struct {
	digest blob.Digest
	data   []byte
}

func (d donors) MayCopy(_ blob.Algorithm, digest blob.Digest, _ int64) bool {
	return digest == d.digest
}

func (d donors) Copy(_ blob.Algorithm, digest blob.Digest, dst []byte) bool {
	return digest == d.digest && copy(dst, d.data) == len(dst)
}

// TestDonors checks that a chunk that another image has on disk is copied and not fetched.
func TestDonors(t *testing.T) {
	image := random(1, 3)
	from := newChunkStore(t, image)
	c := index(t, image).At(0)
	r := newOwnReader(t, image, from, Options{Donors: donors{c.Digest, image[:chunkSize]}})
	r.checkRead(t, 0, 3)
	from.checkOnce(t, r.index, 1, 3)
	if got := r.Stats(); got.CopiedChunks != 1 || got.Fetched != 2 {
		t.Errorf("Stats() = %+v, want one copied and two fetched", got)
	}
}
