package loglimit_test

import (
	"bytes"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cairn/internal/loglimit"
)

// syncBuffer is a buffer that timers write.
type syncBuffer struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// TestHandler: a stream of one message fills no log, each suppressed message is counted, and other messages are
// written.
func TestHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text syncBuffer
		var limit loglimit.Limiter
		log := slog.New(loglimit.NewHandler(slog.NewTextHandler(&text, nil), &limit))
		lines := func() int { return strings.Count(text.String(), "\n") }
		for i := range 1000 {
			log.With("client", i).Warn("request failed", "n", i)
		}
		if n := lines(); n != 20 {
			t.Errorf("%d of 1000 messages are written at once, want 20", n)
		}
		log.Info("an index is published")
		log.Info("request failed")
		if n := lines(); n != 22 {
			t.Errorf("messages of other kinds are suppressed: %d lines, want 22", n)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if !strings.HasSuffix(text.String(), "msg=\"request failed\" client=999 n=999 suppressed=979\n") || lines() != 23 {
			t.Errorf("after a second the log ends with\n%s", text.String())
		}
		for range 10_000 {
			log.Warn("request failed")
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if n := lines(); n > 200 {
			t.Errorf("10,000 messages in as many seconds are %d lines, want one each minute", n)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		before := lines()
		if total := countMessages(t, text.String()); total != 11_002 {
			t.Errorf("the log accounts for %d messages, want 11,002", total)
		}
		for range 5 {
			log.Warn("request failed")
		}
		if n := lines() - before; n != 5 {
			t.Errorf("after a pause %d of 5 messages are written, want all", n)
		}
		time.Sleep(time.Minute)
	})
}

// countMessages returns the number of messages in a log, with the suppressed ones.
func countMessages(t *testing.T, log string) (total int) {
	t.Helper()
	for line := range strings.Lines(log) {
		total++
		if _, number, is := strings.Cut(strings.TrimSpace(line), "suppressed="); is {
			n, err := strconv.Atoi(number)
			if err != nil {
				t.Errorf("the log has %q", line)
			}
			total += n
		}
	}
	return total
}

// TestDebug: debug messages are not limited.
func TestDebug(t *testing.T) {
	var text syncBuffer
	log := slog.New(loglimit.NewHandler(slog.NewTextHandler(&text, &slog.HandlerOptions{Level: slog.LevelDebug}), new(loglimit.Limiter)))
	for range 1000 {
		log.Debug("connected")
	}
	if n := strings.Count(text.String(), "\n"); n != 1000 {
		t.Errorf("%d lines, want 1000", n)
	}
}
