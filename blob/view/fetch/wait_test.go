package fetch

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cairn/store"
)

// TestMendedMeanwhile checks that a read does not fail with a fetch that started before any read waited for it.
func TestMendedMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 1)
		from := newChunkStore(t, image)
		from.latency = time.Second
		from.failAll(store.ErrNotFound)
		r := newOwnReader(t, image, from, Options{})
		r.Prefetch(0, 1, ReadAhead)
		synctest.Wait()
		from.failAll(nil)
		r.checkRead(t, 0, 1)
		if all, _ := from.countRequests(); all != 2 {
			t.Errorf("%d requests, want 2", all)
		}
	})
}

// TestWaiterGivesUp checks that the end of a waiter's context does not cancel the fetch.
func TestWaiterGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 1)
		from := newChunkStore(t, image)
		from.latency = time.Minute
		r := newOwnReader(t, image, from, Options{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			start := time.Now()
			_, err := r.readChunks(ctx, 0, 1)
			if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
				t.Errorf("read = %v after %v, want %v after 1s", err, time.Since(start), context.DeadlineExceeded)
			}
		})
		wg.Go(func() { r.checkRead(t, 0, 1) })
		wg.Wait()
		if r.countInMemory() != 1 {
			t.Error("the chunk is not in memory")
		}
		from.checkOnce(t, r.index, 0, 1)
	})
}

// holdingReader returns a reader with a Hold.
func holdingReader(t *testing.T, image []byte, from *chunkStore, hold time.Duration, o Options) *reader {
	cache := New(t.Context(), o)
	t.Cleanup(cache.Close)
	return newReader(t, cache.NewSource(from, SourceOptions{}), image, ClientOptions{Name: "root", Hold: hold})
}

// TestHoldOfManyChunks checks that a read of several chunks retries each of them, and is limited by Hold.
func TestHoldOfManyChunks(t *testing.T) {
	for hold, whole := range map[time.Duration]bool{ForEver: true, time.Minute: true, 30 * time.Second: false} {
		synctest.Test(t, func(t *testing.T) {
			image := random(1, 250)
			from := newChunkStore(t, image)
			r := holdingReader(t, image, from, hold, Options{})
			from.failAll(store.ErrUnavailable)
			time.AfterFunc(50*time.Second, func() { from.failAll(nil) })
			start := time.Now()
			got, err := r.readChunks(t.Context(), 0, 250)
			took := time.Since(start)
			if whole && (err != nil || !bytes.Equal(got, image) || took > time.Minute) {
				t.Errorf("with a hold of %v: %v after %v", hold, err, took)
			}
			if !whole && (!errors.Is(err, errStall) || !errors.Is(err, store.ErrUnavailable) || took != hold) {
				t.Errorf("with a hold of %v: %v after %v", hold, err, took)
			}
		})
	}
}

// TestHoldOfPrefetch checks that a read that joins a prefetch without an end blocks for Hold once, not twice.
func TestHoldOfPrefetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 1)
		from := newChunkStore(t, image)
		from.latency = time.Hour
		r := holdingReader(t, image, from, time.Minute, Options{})
		r.Prefetch(0, 1, ReadAhead)
		start := time.Now()
		if _, err := r.readChunks(t.Context(), 0, 1); !errors.Is(err, errStall) || time.Since(start) != time.Minute {
			t.Errorf("read = %v after %v, want %v after 1m", err, time.Since(start), errStall)
		}
		s := r.Stats()
		if s.Stalls != 1 || s.StallTime != time.Minute || len(s.Waiting) != 0 {
			t.Errorf("Stats() = %+v, want one stall of a minute", s)
		}
	})
}

// TestWaiting checks that Stats names the chunks that reads wait for, and the error.
func TestWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 3)
		from := newChunkStore(t, image)
		r := holdingReader(t, image, from, time.Hour, Options{})
		from.failAll(store.ErrUnavailable)
		began := time.Now()
		go r.checkRead(t, 2, 3)
		time.Sleep(time.Second)
		go r.checkRead(t, 1, 2)
		synctest.Wait()
		got := r.Stats().Waiting
		if len(got) != 2 || got[0].Chunk != r.index.At(2) || !got[0].Since.Equal(began) || !errors.Is(got[0].Err, store.ErrUnavailable) {
			t.Errorf("Waiting = %+v, want chunk 2 first, for which the store is unavailable", got)
		}
		from.failAll(nil)
		time.Sleep(time.Minute)
		if got := r.Stats().Waiting; len(got) != 0 {
			t.Errorf("Waiting = %+v, want none", got)
		}
	})
}

// TestOutageLog checks that the begin and the end of an outage are logged.
func TestOutageLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 3)
		from := newChunkStore(t, image)
		var messages bytes.Buffer // the handler locks it; no goroutine writes to it any more when the test reads it
		r := holdingReader(t, image, from, time.Hour, Options{Log: slog.New(slog.NewTextHandler(&messages, nil))})
		from.failAll(store.ErrUnavailable)
		time.AfterFunc(50*time.Second, func() { from.failAll(nil) })
		r.checkRead(t, 1, 2)
		text := messages.String()
		if strings.Count(text, "reads wait for the store") != 2 || !strings.Contains(text, "the store answers again") ||
			!strings.Contains(text, "image=root chunk="+r.index.At(1).Digest.String()+" offset=4096 waited=0s error=") {
			t.Errorf("the log lacks a message:\n%s", text)
		}
	})
}

// TestSlowFetch checks that nothing is prefetched while a read waits for a slow fetch, whether or not that is logged.
func TestSlowFetch(t *testing.T) {
	for _, logged := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			image := random(1, 70)
			from := newChunkStore(t, image)
			from.latency = 10 * time.Second
			var messages bytes.Buffer // the handler locks it; no goroutine writes to it any more when the test reads it
			r := newOwnReader(t, image, from, Options{Log: slog.New(slog.NewTextHandler(&messages, nil))})
			if !logged {
				r.source.outage.loggedAt = time.Now()
			}
			go r.checkRead(t, 0, 1)
			time.Sleep(slowFetch + time.Second)
			r.Prefetch(30, 60, ReadAhead)
			synctest.Wait()
			if all, _ := from.countRequests(); all != 1 {
				t.Errorf("logged %v: %d requests beside the slow fetch, want 0", logged, all-1)
			}
			time.Sleep(from.latency)
			synctest.Wait()
			if all, _ := from.countRequests(); all < 3 {
				t.Errorf("logged %v: %d requests after the slow fetch, want at least 3", logged, all)
			}
			if got := strings.Contains(messages.String(), "reads wait for the store"); got != logged {
				t.Errorf("logged: %v, want %v", got, logged)
			}
			time.Sleep(time.Minute)
		})
	}
}
