package view

import (
	"sync"
	"time"

	"cairn/blob"
	"cairn/internal/bitset"
)

// Touch is the first read of a chunk.
type Touch struct {
	Chunk blob.Chunk
	After time.Duration // since the first read of all
}

// Recorder notes the chunks of an image in the order in which they are first read, for a while after the first
// read.
type Recorder struct {
	within time.Duration
	seen   *bitset.Set
	index  *blob.Index

	mu      sync.Mutex // guards what follows
	touches []Touch
	first   time.Time
}

// NewRecorder records reads of x's image that come within a time of the first one; 0 is no limit.
func NewRecorder(x *blob.Index, within time.Duration) *Recorder {
	return &Recorder{within: within, seen: bitset.New(x.Len()), index: x}
}

// touch notes that chunk i was read. Zeros are nothing to fetch.
func (r *Recorder) touch(i int) {
	if r.seen.Has(i) || !r.seen.Add(i) || r.index.IsZero(i) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if r.first.IsZero() {
		r.first = now
	}
	after := now.Sub(r.first)
	if r.within > 0 && after > r.within {
		return
	}
	r.touches = append(r.touches, Touch{r.index.At(i), after})
}

// Reads is what was recorded so far.
func (r *Recorder) Reads() []Touch {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Touch(nil), r.touches...)
}
