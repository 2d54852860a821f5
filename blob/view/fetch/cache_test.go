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

// checkMemory checks that the memory keeps what it counts, and no more than it may.
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
		t.Errorf("the memory keeps %d bytes, counts %d, and may keep %d", sum, m.bytes, m.limit)
	}
	if m.recent.Len() > 1 && m.used() > m.limit {
		t.Errorf("the memory keeps %d bytes beside %d being fetched, and may take %d", sum, m.reserved, m.limit)
	}
	if len(m.places) != m.recent.Len() {
		t.Errorf("%d chunks are kept, %d can be found", m.recent.Len(), len(m.places))
	}
}

// TestOneFetch: however many reads ask for a chunk, it is fetched once, and all wait no longer than one.
func TestOneFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 100)
		from := holding(t, image)
		from.latency = time.Second
		r := open(t, image, from, Options{Fetches: 1000})
		start := time.Now()
		var wg sync.WaitGroup
		for range 30 {
			wg.Go(func() { r.check(t, 20, 80) })
		}
		wg.Wait()
		from.checkOnce(t, r.index, 20, 80)
		if took := time.Since(start); took != time.Second {
			t.Errorf("the reads took %v, want %v", took, time.Second)
		}
	})
}

// TestFetches: the in-flight limit is used, and kept.
func TestFetches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 23)
		from := holding(t, image)
		from.latency = time.Second
		r := open(t, image, from, Options{Fetches: 5})
		start := time.Now()
		r.check(t, 0, 23)
		if from.most != 5 || time.Since(start) != 5*time.Second {
			t.Errorf("%d fetches at once, in %v; want 5, 5s", from.most, time.Since(start))
		}
	})
}

// TestLimit: two images that are larger than the memory leave no more in it than may stay.
func TestLimit(t *testing.T) {
	const limit = 17 * chunkSize
	a, b := random(1, 80), random(2, 80)
	cache := New(t.Context(), Options{Bytes: limit})
	defer cache.Close()
	source := cache.NewSource(holding(t, a, b), SourceOptions{})
	var wg sync.WaitGroup
	for _, image := range [][]byte{a, b} {
		r := newReader(t, source, image, ClientOptions{})
		wg.Go(func() {
			for i := range 78 {
				r.check(t, i, i+3)
				checkMemory(t, cache)
			}
		})
	}
	wg.Wait()
	if used, most := cache.Usage(); most != limit || used > most || used < most-chunkSize {
		t.Errorf("Usage() = %d, %d, want nearly %d", used, most, limit)
	}
}

// TestLeastRecentlyUsedGoes: a chunk that is read again and again stays, whatever else is read.
func TestLeastRecentlyUsedGoes(t *testing.T) {
	image := random(1, 100)
	from := holding(t, image)
	r := open(t, image, from, Options{Bytes: 10 * chunkSize})
	for i := range 100 {
		r.check(t, i, i+1)
		r.check(t, 0, 1)
	}
	from.checkOnce(t, r.index, 0, 100)
	if got := r.inMemory(); got != 10 {
		t.Errorf("%d chunks are in memory, want 10", got)
	}
}

// TestLookup: a chunk in memory is found, and that counts as a use; InMemory does not.
func TestLookup(t *testing.T) {
	image := random(1, 10)
	r := open(t, image, holding(t, image), Options{Bytes: 2 * chunkSize})
	first, second := r.index.At(0), r.index.At(1)
	if r.Lookup(first) != nil || r.InMemory(first) {
		t.Error("a chunk is in memory before it was fetched")
	}
	r.check(t, 0, 1)
	r.check(t, 1, 2)
	if data := r.Lookup(first); string(data) != string(image[:chunkSize]) || !r.InMemory(second) {
		t.Errorf("Lookup gives %d other bytes", len(data))
	}
	r.InMemory(second)
	r.check(t, 2, 3)
	if !r.InMemory(first) || r.InMemory(second) {
		t.Error("the chunk that was used last was evicted")
	}
	if n := testing.AllocsPerRun(100, func() { r.Lookup(first) }); n != 0 {
		t.Errorf("Lookup allocates %v times", n)
	}
}

// TestLargeChunk: a chunk that is larger than the whole memory is kept alone.
func TestLargeChunk(t *testing.T) {
	image := random(1, 5)
	from := holding(t, image)
	r := open(t, image, from, Options{Bytes: 100})
	for i := range 5 {
		r.check(t, i, i+1)
		r.check(t, i, i+1)
	}
	from.checkOnce(t, r.index, 0, 5)
	r.check(t, 0, 5)
}

// TestPrefetch: it does not wait, fetches each chunk once, and never more than half of the memory at once.
func TestPrefetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 100)
		from := holding(t, image)
		from.latency = time.Minute
		r := open(t, image, from, Options{Bytes: 40 * chunkSize, Fetches: 3})
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
			t.Errorf("the observer was told of %d prefetches, want 30", n)
		}
	})
}

// TestDemandFirst: a read is served before prefetches, also one that waits for a queued prefetch.
func TestDemandFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 300)
		from := holding(t, image)
		from.latency = time.Second
		r := open(t, image, from, Options{Fetches: 8})
		r.Prefetch(0, 200, ReadAhead)
		synctest.Wait()
		for _, i := range []int{199, 250} {
			start := time.Now()
			r.check(t, i, i+1)
			if took := time.Since(start); took > time.Second {
				t.Errorf("reading chunk %d beside prefetches took %v, want 1s", i, took)
			}
		}
	})
}

// TestPrefetchFailure: a failed prefetch fails no read: the next one asks again.
func TestPrefetchFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 1)
		from := holding(t, image)
		from.outage(store.ErrUnavailable)
		r := open(t, image, from, Options{})
		r.Prefetch(0, 1, ReadAhead)
		synctest.Wait()
		from.outage(nil)
		r.check(t, 0, 1)
		if len(r.noted.lost) != 1 {
			t.Errorf("the observer was told of %v lost chunks, want one", r.noted.lost)
		}
	})
}

// TestClose: it ends the fetches, and leaves no goroutine, or synctest would complain.
func TestClose(t *testing.T) {
	for name, end := range map[string]func(cancel context.CancelFunc, c *Cache){
		"closed":              func(_ context.CancelFunc, c *Cache) { c.Close() },
		"cancelled, closed":   func(cancel context.CancelFunc, c *Cache) { cancel(); c.Close() },
		"cancelled, no close": func(cancel context.CancelFunc, _ *Cache) { cancel() },
	} {
		synctest.Test(t, func(t *testing.T) {
			image := random(1, 30)
			from := holding(t, image)
			from.latency = time.Hour
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			cache := New(ctx, Options{Fetches: 2})
			r, start := newReader(t, cache.NewSource(from, SourceOptions{}), image, ClientOptions{}), time.Now()
			for range 3 {
				go func() {
					if _, err := r.read(t.Context(), 5, 8); !errors.Is(err, context.Canceled) {
						t.Errorf("%s: read = %v, want %v", name, err, context.Canceled)
					}
				}()
			}
			r.Prefetch(0, 30, ReadAhead)
			r.StartFeed(&listFeed{list: upTo(30)}, Profile, 0)
			synctest.Wait()
			end(cancel, cache)
			synctest.Wait()
			before, now := from.asked()
			if now != 0 || time.Since(start) != 0 {
				t.Errorf("%s: %d fetches are under way, %v later", name, now, time.Since(start))
			}
			r.Prefetch(0, 30, ReadAhead)
			if _, err := r.read(t.Context(), 0, 1); !errors.Is(err, context.Canceled) {
				t.Errorf("%s: read = %v, want %v", name, err, context.Canceled)
			}
			if after, _ := from.asked(); after != before {
				t.Errorf("%s: %d fetches begin afterwards", name, after-before)
			}
		})
	}
}

// TestCloseBesideReads: when Close has returned, no fetch is under way or begins, whatever is read meanwhile.
func TestCloseBesideReads(t *testing.T) {
	image := random(1, 30)
	for range 50 {
		from := holding(t, image)
		cache := New(t.Context(), Options{Bytes: 5 * chunkSize})
		r := newReader(t, cache.NewSource(from, SourceOptions{}), image, ClientOptions{})
		var wg sync.WaitGroup
		begun := make(chan struct{}, 4)
		for range 4 {
			wg.Go(func() {
				for err := error(nil); err == nil; {
					_, err = r.read(t.Context(), 0, 15)
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
		before, now := from.asked()
		for range begun { // until the readers have ended
		}
		if after, _ := from.asked(); now != 0 || after != before {
			t.Fatalf("Close left %d fetches, and %d began after it", now, after-before)
		}
	}
}

// TestTwoImages: a chunk that two images share is fetched once; and when the store of the first one fails, the second
// one's own store is asked.
func TestTwoImages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := random(1, 70)
		a, b := append(random(2, 3), shared...), append(random(3, 3), shared...)
		cache := New(t.Context(), Options{})
		defer cache.Close()
		good, bad := holding(t, a, b), holding(t, a, b)
		good.latency, bad.latency = time.Second, time.Second
		bad.outage(store.ErrDenied)
		rb := newReader(t, cache.NewSource(good, SourceOptions{}), b, ClientOptions{})
		ra := newReader(t, cache.NewSource(bad, SourceOptions{}), a, ClientOptions{})
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := ra.read(t.Context(), 0, 73); !errors.Is(err, store.ErrDenied) {
				t.Errorf("a read with a bad store = %v, want %v", err, store.ErrDenied)
			}
		})
		synctest.Wait()
		rb.check(t, 0, 73)
		wg.Wait()
		ra.check(t, 3, 73) // from memory
		good.checkOnce(t, rb.index, 0, 73)
	})
}

// TestUnreadOfAnother: a chunk that one client's feed brought and another client reads first counts as read.
func TestUnreadOfAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 70)
		cache := New(t.Context(), Options{Bytes: 16 * chunkSize})
		defer cache.Close()
		source := cache.NewSource(holding(t, image), SourceOptions{})
		a, b := newReader(t, source, image, ClientOptions{}), newReader(t, source, image, ClientOptions{})
		a.StartFeed(&listFeed{list: []int{0, 1}}, Profile, 0)
		synctest.Wait()
		if a.unread != 2*chunkSize {
			t.Errorf("%d bytes count as unread, want %d", a.unread, 2*chunkSize)
		}
		b.MarkRead(b.index.At(0))
		b.check(t, 20, 70) // pushes out the other one
		if a.unread != 0 || b.unread != 0 {
			t.Errorf("%d and %d bytes count as unread, want none", a.unread, b.unread)
		}
	})
}

// TestDisk: chunks on disk are not fetched; claimed ones are proven, and fetched when they are damaged, which is urgent
// for a read; fetched ones are offered to the disk.
func TestDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 10)
		from, d := holding(t, image), newDisk()
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
		r.check(t, 0, 9)
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

// TestProofBesideReads: other reads come upon a chunk while it is being proven, which the race detector watches.
func TestProofBesideReads(t *testing.T) {
	image := random(1, 40)
	cache := New(t.Context(), Options{Bytes: 10 * chunkSize})
	defer cache.Close()
	source := cache.NewSource(holding(t, image), SourceOptions{})
	var wg sync.WaitGroup
	for range 4 {
		d := newDisk()
		for i := range 40 {
			d.claimed[i] = image[i*chunkSize : (i+1)*chunkSize]
		}
		r := newReader(t, source, image, ClientOptions{Disk: d})
		wg.Go(func() { r.check(t, 0, 40) })
		wg.Go(func() { r.Prefetch(0, 40, ReadAhead) })
	}
	wg.Wait()
}

// donors has one chunk.
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

// TestDonors: a chunk that another image has on disk is copied, and not fetched.
func TestDonors(t *testing.T) {
	image := random(1, 3)
	from := holding(t, image)
	c := index(t, image).At(0)
	r := open(t, image, from, Options{Donors: donors{c.Digest, image[:chunkSize]}})
	r.check(t, 0, 3)
	from.checkOnce(t, r.index, 1, 3)
	if got := r.Stats(); got.CopiedChunks != 1 || got.Fetched != 2 {
		t.Errorf("Stats() = %+v, want one copied and two fetched", got)
	}
}
