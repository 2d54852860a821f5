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

// TestMendedMeanwhile: a read that comes upon a fetch that began before any read waited does not fail with it.
func TestMendedMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 1)
		from := holding(t, image)
		from.latency = time.Second
		from.outage(store.ErrNotFound)
		r := open(t, image, from, Options{})
		r.Prefetch(0, 1, ReadAhead)
		synctest.Wait()
		from.outage(nil)
		r.check(t, 0, 1)
		if all, _ := from.asked(); all != 2 {
			t.Errorf("the store was asked %d times, want 2", all)
		}
	})
}

// TestWaiterGivesUp: giving up does not end the fetch, for others and for later.
func TestWaiterGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 1)
		from := holding(t, image)
		from.latency = time.Minute
		r := open(t, image, from, Options{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			start := time.Now()
			_, err := r.read(ctx, 0, 1)
			if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
				t.Errorf("read = %v after %v, want %v after 1s", err, time.Since(start), context.DeadlineExceeded)
			}
		})
		wg.Go(func() { r.check(t, 0, 1) })
		wg.Wait()
		if r.inMemory() != 1 {
			t.Error("the chunk is not kept")
		}
		from.checkOnce(t, r.index, 0, 1)
	})
}

// holdingReader returns a reader whose reads wait for an unavailable store.
func holdingReader(t *testing.T, image []byte, from *chunkStore, hold time.Duration, o Options) *reader {
	cache := New(t.Context(), o)
	t.Cleanup(cache.Close)
	return newReader(t, cache.NewSource(from, SourceOptions{}), image, ClientOptions{Name: "root", Hold: hold})
}

// TestHoldOfManyChunks: a read of several chunks waits for each of them, whichever it comes to first, and no longer than
// Hold.
func TestHoldOfManyChunks(t *testing.T) {
	for hold, whole := range map[time.Duration]bool{ForEver: true, time.Minute: true, 30 * time.Second: false} {
		synctest.Test(t, func(t *testing.T) {
			image := random(1, 250)
			from := holding(t, image)
			r := holdingReader(t, image, from, hold, Options{})
			from.outage(store.ErrUnavailable)
			time.AfterFunc(50*time.Second, func() { from.outage(nil) })
			start := time.Now()
			got, err := r.read(t.Context(), 0, 250)
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

// TestHoldOfPrefetch: a read of a chunk whose prefetch does not end waits for Hold once, not twice.
func TestHoldOfPrefetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 1)
		from := holding(t, image)
		from.latency = time.Hour
		r := holdingReader(t, image, from, time.Minute, Options{})
		r.Prefetch(0, 1, ReadAhead)
		start := time.Now()
		if _, err := r.read(t.Context(), 0, 1); !errors.Is(err, errStall) || time.Since(start) != time.Minute {
			t.Errorf("read = %v after %v, want %v after 1m", err, time.Since(start), errStall)
		}
		s := r.Stats()
		if s.Stalls != 1 || s.StallTime != time.Minute || len(s.Waiting) != 0 {
			t.Errorf("Stats() = %+v, want one stall of a minute", s)
		}
	})
}

// TestWaiting: Stats tells which chunk a read waits for, and why.
func TestWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 3)
		from := holding(t, image)
		r := holdingReader(t, image, from, time.Hour, Options{})
		from.outage(store.ErrUnavailable)
		began := time.Now()
		go r.check(t, 2, 3)
		time.Sleep(time.Second)
		go r.check(t, 1, 2)
		synctest.Wait()
		got := r.Stats().Waiting
		if len(got) != 2 || got[0].Chunk != r.index.At(2) || !got[0].Since.Equal(began) || !errors.Is(got[0].Err, store.ErrUnavailable) {
			t.Errorf("Waiting = %+v, want chunk 2 first, for which the store is unavailable", got)
		}
		from.outage(nil)
		time.Sleep(time.Minute)
		if got := r.Stats().Waiting; len(got) != 0 {
			t.Errorf("Waiting = %+v, want none", got)
		}
	})
}

// TestOutageLog: the log tells of an outage that reads wait for, and of its end.
func TestOutageLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := random(1, 3)
		from := holding(t, image)
		var said bytes.Buffer // the handler locks it, and all have ended when it is read
		r := holdingReader(t, image, from, time.Hour, Options{Log: slog.New(slog.NewTextHandler(&said, nil))})
		from.outage(store.ErrUnavailable)
		time.AfterFunc(50*time.Second, func() { from.outage(nil) })
		r.check(t, 1, 2)
		text := said.String()
		if strings.Count(text, "reads wait for the store") != 2 || !strings.Contains(text, "the store answers again") ||
			!strings.Contains(text, "image=root chunk="+r.index.At(1).Digest.String()+" offset=4096 waited=0s error=") {
			t.Errorf("the log says:\n%s", text)
		}
	})
}

// TestSlowFetch: while a read waits for a fetch that takes long, nothing is prefetched, whether the log tells of it or
// has told of another just now.
func TestSlowFetch(t *testing.T) {
	for _, logged := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			image := random(1, 70)
			from := holding(t, image)
			from.latency = 10 * time.Second
			var said bytes.Buffer
			r := open(t, image, from, Options{Log: slog.New(slog.NewTextHandler(&said, nil))})
			if !logged {
				r.source.outage.loggedAt = time.Now()
			}
			go r.check(t, 0, 1)
			time.Sleep(slowFetch + time.Second)
			r.Prefetch(30, 60, ReadAhead)
			synctest.Wait()
			if all, _ := from.asked(); all != 1 {
				t.Errorf("logged %v: %d requests beside a slow one", logged, all-1)
			}
			time.Sleep(from.latency)
			synctest.Wait()
			if all, _ := from.asked(); all < 3 {
				t.Errorf("logged %v: %d requests when the store has answered", logged, all)
			}
			if got := strings.Contains(said.String(), "reads wait for the store"); got != logged {
				t.Errorf("logged: %v, want %v", got, logged)
			}
			time.Sleep(time.Minute)
		})
	}
}
