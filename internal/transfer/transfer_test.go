package transfer_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cairn/internal/transfer"
	"cairn/store"
)

// never is a body that blocks until its context ends.
type never struct{ ctx context.Context }

func (n never) Read([]byte) (int, error) {
	<-n.ctx.Done()
	return 0, n.ctx.Err()
}

// TestBodyStalls: reading a stalled body fails when the patience has passed, and not before.
func TestBodyStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, abort := context.WithCancelCause(t.Context())
		request, _ := http.NewRequestWithContext(ctx, "GET", "http://h/", nil)
		body := io.MultiReader(strings.NewReader("12345"), never{ctx})
		in := transfer.Incoming{Patience: time.Minute, Abort: abort,
			Answer: &http.Response{Request: request, ContentLength: 10, Body: io.NopCloser(body)}}
		start := time.Now()
		_, err := in.Body(nil, 10)
		if !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "after 5 bytes: the transfer has stalled") {
			t.Errorf("Body = %v", err)
		}
		if took := time.Since(start); took != time.Minute {
			t.Errorf("Body took %v, want its patience", took)
		}
	})
}

// TestBodyLimit: a Content-Length allocates no memory before its bytes arrive.
func TestBodyLimit(t *testing.T) {
	in := transfer.Incoming{Patience: time.Minute, Abort: func(error) {},
		Answer: &http.Response{Request: &http.Request{}, ContentLength: 1 << 40, Body: io.NopCloser(strings.NewReader("12345"))}}
	if out, err := in.Body([]byte("a"), 1<<50); cap(out) > 2<<20 || string(out) != "a12345" {
		t.Errorf("Body = %d bytes of %d, %v", len(out), cap(out), err)
	}
	if _, err := in.Body(nil, 10); !errors.Is(err, store.ErrTooLarge) {
		t.Errorf("Body = %v, want ErrTooLarge", err)
	}
}

// TestSlowReader: the time between two reads of a body does not count as the server's.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, abort := context.WithCancelCause(t.Context())
		request, _ := http.NewRequestWithContext(ctx, "GET", "http://h/", nil)
		body := io.MultiReader(strings.NewReader("1234"), never{ctx})
		in := transfer.Incoming{Patience: time.Minute, Abort: abort,
			Answer: &http.Response{Request: request, ContentLength: 10, Body: io.NopCloser(body)}}
		err := in.Stream(10, func(r io.Reader) error {
			for range 4 {
				time.Sleep(time.Hour)
				if _, err := r.Read(make([]byte, 1)); err != nil {
					return err
				}
			}
			time.Sleep(time.Hour)
			start := time.Now()
			_, err := r.Read(make([]byte, 1))
			if took := time.Since(start); took != time.Minute {
				t.Errorf("a silent server was given up after %v, want the patience", took)
			}
			return err
		})
		if !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "after 4 bytes: the transfer has stalled") {
			t.Errorf("Stream = %v", err)
		}
	})
}

// slowBytes is a body that takes a second for each byte.
type slowBytes struct{ ctx context.Context }

func (s slowBytes) Read(p []byte) (int, error) {
	if err := store.Sleep(s.ctx, time.Second); err != nil {
		return 0, err
	}
	p[0] = 'x'
	return 1, nil
}

// TestBodyTrickles: the reads of a window share the patience.
func TestBodyTrickles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, abort := context.WithCancelCause(t.Context())
		request, _ := http.NewRequestWithContext(ctx, "GET", "http://h/", nil)
		in := transfer.Incoming{Patience: 90*time.Second + time.Millisecond, Abort: abort,
			Answer: &http.Response{Request: request, ContentLength: 1000, Body: io.NopCloser(slowBytes{ctx})}}
		_, err := in.Body(nil, 1000)
		if !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "after 90 bytes: the transfer has stalled") {
			t.Errorf("Body = %v", err)
		}
	})
}

// TestSend: the timer starts with the first byte of the body, is reset by each 32 KiB, and ends with stop.
func TestSend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var aborted atomic.Int64 // nanoseconds since start
		request, _ := http.NewRequestWithContext(t.Context(), "PUT", "http://h/", nil)
		data := make([]byte, 100<<10)
		stop := transfer.Send(request, data, time.Minute, func(error) { aborted.Store(int64(time.Since(start))) })
		time.Sleep(time.Hour) // the time until there is a connection
		for range 3 {
			io.ReadFull(request.Body, make([]byte, 32<<10))
			time.Sleep(50 * time.Second)
		}
		synctest.Wait()
		if aborted.Load() > 0 {
			t.Error("a slow transfer was given up")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := time.Duration(aborted.Load()); got != time.Hour+100*time.Second+time.Minute {
			t.Errorf("given up after %v, want a minute after the last 32 KiB", got)
		}
		again, err := request.GetBody()
		if err != nil {
			t.Fatal(err)
		}
		if all, err := io.ReadAll(again); len(all) != len(data) || err != nil {
			t.Errorf("the second reading gives %d bytes, %v", len(all), err)
		}
		stop()
		if n, err := request.Body.Read(make([]byte, 1)); n > 0 || err == nil {
			t.Error("the data is read after stop")
		}
	})
}

// TestSendWithoutAnswer: the timer runs on after the whole body was sent, until stop.
func TestSendWithoutAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var aborted atomic.Int64
		request, _ := http.NewRequestWithContext(t.Context(), "PUT", "http://h/", nil)
		for range 2 {
			stop := transfer.Send(request, []byte("data"), time.Minute, func(error) { aborted.Add(1) })
			io.ReadAll(request.Body)
			time.Sleep(90 * time.Second)
			stop()
			time.Sleep(time.Hour)
		}
		synctest.Wait()
		if aborted.Load() > 0 {
			t.Error("an answer after a minute and a half was given up")
		}
		defer transfer.Send(request, []byte("data"), time.Minute, func(error) { aborted.Add(1) })()
		io.ReadAll(request.Body)
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		if n := aborted.Load(); n != 1 {
			t.Errorf("no answer for three minutes: given up %d times", n)
		}
	})
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "-7": 0, "soon": 0, "99999999999999999999": 0,
		now.Add(-time.Hour).Format(http.TimeFormat): 0,
		now.Add(time.Hour).Format(http.TimeFormat):  time.Hour,
	} {
		if got := transfer.RetryAfter(http.Header{"Retry-After": {value}}, now); got != want {
			t.Errorf("RetryAfter(%q) = %v, want %v", value, got, want)
		}
	}
}

// TestRetryAfterWrongClock: a date counts from the server's time, whatever this machine's clock says.
func TestRetryAfterWrongClock(t *testing.T) {
	sent := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	head := http.Header{
		"Date":        {sent.Format(http.TimeFormat)},
		"Retry-After": {sent.Add(5 * time.Second).Format(http.TimeFormat)},
	}
	for _, now := range []time.Time{time.Unix(0, 0), sent.Add(-24 * time.Hour), sent, sent.AddDate(1, 0, 0)} {
		if got := transfer.RetryAfter(head, now); got != 5*time.Second {
			t.Errorf("RetryAfter at %v = %v, want 5s", now, got)
		}
	}
	head.Set("Date", "today")
	if got := transfer.RetryAfter(head, sent); got != 5*time.Second {
		t.Errorf("RetryAfter with a broken Date = %v, want 5s", got)
	}
}
