package fetch

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"cairn/store"
)

// TestFeed checks that a feed's chunks are fetched once and in order, without those on disk, and that the feed ends.
func TestFeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 40)
		from, d := newChunkStore(t, image), newDisk()
		d.data[7] = image[:chunkSize]
		cache := New(t.Context(), Options{Bytes: 1}) // with a disk, memory does not limit feeds
		defer cache.Close()
		r := newReader(t, cache.NewSource(from, SourceOptions{}), image, ClientOptions{Disk: d})
		list := shuffledChunks(1, 40)
		r.StartFeed(&listFeed{list: list}, Profile, 0)
		synctest.Wait()
		want := slices.DeleteFunc(list, func(i int) bool { return i == 7 })
		if !slices.Equal(r.noted.prefetching, want) || len(d.data) != 40 || d.waited != 39 {
			t.Errorf("fetched %v, want %v; %d chunks are on disk", r.noted.prefetching, want, len(d.data))
		}
		if all, _ := from.countRequests(); all != 39 || len(r.source.feeds) != 0 {
			t.Errorf("%d requests, want 39; %d feeds have not ended", all, len(r.source.feeds))
		}
	})
}

// TestFetchedOnceForSlowDisk checks that a chunk is not fetched again while it waits for the disk's queue, without
// room in memory.
func TestFetchedOnceForSlowDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 3)
		image = append(image, image[:chunkSize]...)
		from, d := newChunkStore(t, image), newDisk()
		d.behind = make(chan struct{})
		cache := New(t.Context(), Options{Bytes: 1})
		defer cache.Close()
		r := newReader(t, cache.NewSource(from, SourceOptions{}), image, ClientOptions{Disk: d})
		f := &listFeed{list: []int{0, 1, 2}}
		r.StartFeed(f, Fill, 0)
		synctest.Wait()
		r.StartFeed(&listFeed{list: []int{3}}, Fill, 0)
		synctest.Wait()
		close(d.behind)
		synctest.Wait()
		from.checkOnce(t, r.index, 0, 3)
		if len(d.data) != 4 {
			t.Errorf("%d chunks are on disk, want 4", len(d.data))
		}
	})
}

// TestFeedInMemory checks that a feed fills half of the memory with unread chunks, and continues as they are read.
func TestFeedInMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 40)
		from := newChunkStore(t, image)
		r := newOwnReader(t, image, from, Options{Bytes: 20 * chunkSize})
		r.StartFeed(&listFeed{list: firstChunks(40)}, Profile, 0)
		for i := range 30 {
			synctest.Wait()
			if all, _ := from.countRequests(); all != 10+i {
				t.Fatalf("%d requests when %d chunks were read, want %d", all, i, 10+i)
			}
			r.MarkRead(r.index.At(i))
		}
	})
}

// TestFeedRate checks that a feed keeps to its rate.
func TestFeedRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 40)
		from := newChunkStore(t, image)
		r := newOwnReader(t, image, from, Options{})
		r.StartFeed(&listFeed{list: firstChunks(40)}, Fill, 4*chunkSize)
		time.Sleep(5*time.Second + time.Millisecond)
		if all, _ := from.countRequests(); all < 19 || all > 21 {
			t.Errorf("%d chunks in 5 s at 4 a second, want about 20", all)
		}
		time.Sleep(time.Minute)
		from.checkOnce(t, r.index, 0, 40)
	})
}

// TestFeedFailure checks that failed chunks are retried at the end of the feed, with a backoff in an outage.
func TestFeedFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 40)
		from := newChunkStore(t, image)
		r := newOwnReader(t, image, from, Options{})
		from.failAll(store.ErrUnavailable)
		r.StartFeed(&listFeed{list: firstChunks(40)}, Profile, 0)
		time.Sleep(time.Minute)
		if all, _ := from.countRequests(); all > 80 {
			t.Errorf("an unavailable store got %d requests in a minute, want at most 80", all)
		}
		from.failAll(nil)
		time.Sleep(time.Minute)
		if got := r.countInMemory(); got != 40 {
			t.Errorf("%d chunks are in memory, want 40", got)
		}
	})
}

// TestFeedBudget checks that a feed with Idle starts a while after the last demand fetch, that one with Alone has one
// fetch in flight, and that one with Pause has none.
func TestFeedBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 40)
		from := newChunkStore(t, image)
		from.latency = time.Second
		r := newOwnReader(t, image, from, Options{Fetches: 8})
		go r.checkRead(t, 39, 40)
		synctest.Wait()
		f := &listFeed{list: firstChunks(10), budget: Budget{Idle: true}}
		r.StartFeed(f, Fill, 0)
		time.Sleep(time.Second + idleAfter - time.Millisecond)
		if all, _ := from.countRequests(); all != 1 {
			t.Errorf("%d prefetches beside a demand fetch, want none", all-1)
		}
		time.Sleep(time.Minute)
		from.checkSome(t, 11)

		from.most = 0
		r.StartFeed(&listFeed{list: []int{20, 21, 22}, budget: Budget{Alone: true}}, Profile, 0)
		time.Sleep(time.Minute)
		if from.checkSome(t, 14); from.most != 1 {
			t.Errorf("%d fetches at once, want 1", from.most)
		}

		paused := &listFeed{list: []int{30}, budget: Budget{Pause: time.Minute}}
		r.StartFeed(paused, Profile, 0)
		time.Sleep(time.Hour)
		from.checkSome(t, 14)
		r.StopFeeds()
		paused.budget = Budget{}
		time.Sleep(time.Hour)
		from.checkSome(t, 14)
	})
}

// checkSome checks the number of requests so far.
func (s *chunkStore) checkSome(t *testing.T, want int) {
	t.Helper()
	if all, _ := s.countRequests(); all != want {
		t.Errorf("%d requests so far, want %d", all, want)
	}
}

// TestFeedRewind checks that there is a pause before each further pass of a feed.
func TestFeedRewind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 4)
		from := newChunkStore(t, image)
		r := newOwnReader(t, image, from, Options{})
		f := &listFeed{list: []int{0}, passes: 3}
		start := time.Now()
		r.StartFeed(f, Fill, 0)
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(f.ends) != 4 || f.ends[3].Sub(start) != 3*rewindPause {
			t.Errorf("Rewind was called at %v, want 4 times, a second apart", f.ends)
		}
		from.checkOnce(t, r.index, 0, 1)
	})
}
