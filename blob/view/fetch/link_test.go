package fetch

import (
	"testing"
	"time"
)

// fixedLink is a Link with a fixed product and budget in bytes.
type fixedLink int64

func (l fixedLink) Product() int64             { return int64(l) }
func (l fixedLink) Budget(time.Duration) int64 { return int64(l) }

// TestGivenLink checks that a source uses the Link of its options.
func TestGivenLink(t *testing.T) {
	image := random(1, 40)
	from := newChunkStore(t, image)
	from.latency = time.Hour
	cache := New(t.Context(), Options{})
	defer cache.Close()
	r := newReader(t, cache.NewSource(from, SourceOptions{Link: fixedLink(3 * chunkSize)}), image, ClientOptions{})
	r.Prefetch(0, 40, ReadAhead)
	cache.mu.Lock()
	defer cache.mu.Unlock()
	if r.source.inFlight != 3 || r.Product() != 3*chunkSize {
		t.Errorf("%d prefetches in flight, want 3", r.source.inFlight)
	}
}
