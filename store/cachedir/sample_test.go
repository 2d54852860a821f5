package cachedir

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"cairn/store"
)

// TestSample checks that Sample reads a limited number of chunks, removes those that are damaged and releases their
// space, and changes no time of last use.
func TestSample(t *testing.T) {
	d := open(t, t.TempDir(), Unlimited)
	damaged := map[string]bool{}
	past := time.Now().Add(-48 * time.Hour)
	for i := range uint64(600) { // so many that random directories contain chunks
		s := newSample(i, 100)
		write(t, d, s)
		if i%2 == 0 {
			damaged[s.name()] = true
		}
		if err := os.Chtimes(filepath.Join(d.path, s.name()), past, past); err != nil {
			t.Fatal(err)
		}
	}
	l := d.ledger
	used := func() (n int64) {
		if err := l.updateTally(t.Context(), func(t *tally) error { n = t.used; return nil }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before, bad, seen := used(), 0, 0
	removed := d.Sample(t.Context(), func(ctx context.Context, r store.Reader, name string) bool {
		seen++
		if data, err := r.Read(ctx, name, nil, 1<<20); err != nil || len(data) < 100 {
			t.Errorf("reading %s: %d bytes, %v", name, len(data), err)
		}
		if info, err := os.Lstat(filepath.Join(d.path, name)); err != nil || !info.ModTime().Equal(past.Truncate(0)) {
			t.Errorf("%s counts as used: %v", name, err)
		}
		if damaged[name] {
			bad++
		}
		return damaged[name]
	})
	if seen != sampleChunks || removed != bad || bad == 0 {
		t.Errorf("%d chunks were sampled and %d removed, want %d and %d", seen, removed, sampleChunks, bad)
	}
	if got, want := used(), before-int64(bad)*blockSize; got != want {
		t.Errorf("the count is %d bytes, want %d", got, want)
	}
	for name := range damaged {
		if _, err := os.Lstat(filepath.Join(d.path, name)); err != nil {
			bad--
		}
	}
	if bad != 0 {
		t.Errorf("%d more chunks were reported as removed than are gone", bad)
	}
}

// TestSampleEnds checks that Sample reads nothing after its context has ended, and nothing in a job that did not use the
// cache.
func TestSampleEnds(t *testing.T) {
	d := open(t, t.TempDir(), Unlimited)
	for i := range uint64(600) {
		write(t, d, newSample(i, 100))
	}
	none := func(context.Context, store.Reader, string) bool { t.Error("a chunk is sampled"); return true }
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if n := d.Sample(ended, none); n != 0 {
		t.Errorf("%d chunks were removed", n)
	}
	unused := open(t, d.path, Unlimited)
	if n := unused.Sample(t.Context(), none); n != 0 {
		t.Errorf("%d chunks were removed", n)
	}
}
