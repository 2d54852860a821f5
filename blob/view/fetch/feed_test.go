package fetch

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"cairn/store"
)

// TestFeed: a feed's chunks are fetched once, in order, without those on disk, and end.
func TestFeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 40)
		from, d := holding(t, image), newDisk()
		d.data[7] = image[:chunkSize]
		cache := New(t.Context(), Options{Bytes: 1}) // with a disk, memory does not limit feeds
		defer cache.Close()
		r := newReader(t, cache.NewSource(from, SourceOptions{}), image, ClientOptions{Disk: d})
		list := shuffled(1, 40)
		r.StartFeed(&listFeed{list: list}, Profile, 0)
		synctest.Wait()
		want := slices.DeleteFunc(list, func(i int) bool { return i == 7 })
		if !slices.Equal(r.noted.prefetching, want) || len(d.data) != 40 || d.waited != 39 {
			t.Errorf("fetched %v, want %v; %d chunks are on disk", r.noted.prefetching, want, len(d.data))
		}
		if all, _ := from.asked(); all != 39 || len(r.source.feeds) != 0 {
			t.Errorf("%d requests, want 39; %d feeds go on", all, len(r.source.feeds))
		}
	})
}

// TestFetchedOnceForSlowDisk: a chunk that memory has no room for and that the disk has not taken yet is not fetched again.
func TestFetchedOnceForSlowDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 3)
		image = append(image, image[:chunkSize]...)
		from, d := holding(t, image), newDisk()
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

// TestFeedInMemory: a feed takes up half of the memory with unread chunks, and goes on as they are read.
func TestFeedInMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 40)
		from := holding(t, image)
		r := open(t, image, from, Options{Bytes: 20 * chunkSize})
		r.StartFeed(&listFeed{list: upTo(40)}, Profile, 0)
		for i := range 30 {
			synctest.Wait()
			if all, _ := from.asked(); all != 10+i {
				t.Fatalf("%d requests when %d chunks were read, want %d", all, i, 10+i)
			}
			r.MarkRead(r.index.At(i))
		}
	})
}

// TestFeedRate: a feed with a rate takes its time.
func TestFeedRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 40)
		from := holding(t, image)
		r := open(t, image, from, Options{})
		r.StartFeed(&listFeed{list: upTo(40)}, Fill, 4*chunkSize)
		time.Sleep(5*time.Second + time.Millisecond)
		if all, _ := from.asked(); all < 19 || all > 21 {
			t.Errorf("%d chunks in 5 s at 4 a second", all)
		}
		time.Sleep(time.Minute)
		from.checkOnce(t, r.index, 0, 40)
	})
}

// TestFeedFailure: chunks that could not be fetched are asked for again in the end, and in an outage rarely.
func TestFeedFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 40)
		from := holding(t, image)
		r := open(t, image, from, Options{})
		from.outage(store.ErrUnavailable)
		r.StartFeed(&listFeed{list: upTo(40)}, Profile, 0)
		time.Sleep(time.Minute)
		if all, _ := from.asked(); all > 80 {
			t.Errorf("an unavailable store was asked %d times in a minute", all)
		}
		from.outage(nil)
		time.Sleep(time.Minute)
		if got := r.inMemory(); got != 40 {
			t.Errorf("%d chunks have come, want 40", got)
		}
	})
}

// TestFeedBudget: an idle feed waits until no demand fetch is in flight, and a while longer; one alone has one fetch in
// flight; a pause is kept.
func TestFeedBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 40)
		from := holding(t, image)
		from.latency = time.Second
		r := open(t, image, from, Options{Fetches: 8})
		go r.check(t, 39, 40)
		synctest.Wait()
		f := &listFeed{list: upTo(10), budget: Budget{Idle: true}}
		r.StartFeed(f, Fill, 0)
		time.Sleep(time.Second + quiet - time.Millisecond)
		if all, _ := from.asked(); all != 1 {
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
	if all, _ := s.asked(); all != want {
		t.Errorf("%d requests so far, want %d", all, want)
	}
}

// TestFeedRewind: a feed that begins again does so after a pause.
func TestFeedRewind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 4)
		from := holding(t, image)
		r := open(t, image, from, Options{})
		f := &listFeed{list: []int{0}, passes: 3}
		start := time.Now()
		r.StartFeed(f, Fill, 0)
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(f.ends) != 4 || f.ends[3].Sub(start) != 3*passPause {
			t.Errorf("passes end at %v, want 4, a second apart", f.ends)
		}
		from.checkOnce(t, r.index, 0, 1)
	})
}
