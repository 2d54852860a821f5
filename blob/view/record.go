package view

import (
	"slices"
	"sync"
	"time"

	"cairn/blob"
	"cairn/blob/profile"
	"cairn/internal/bitset"
)

// Recorder notes the chunks of an image in the order in which they are first read, for a while after the first
// read.
type Recorder struct {
	within time.Duration
	seen   *bitset.Set
	index  *blob.Index

	mu    sync.Mutex // guards what follows
	reads []profile.Read
	first time.Time
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
	r.reads = append(r.reads, profile.Read{Chunk: r.index.At(i), After: after})
}

// Reads returns what was recorded so far.
func (r *Recorder) Reads() []profile.Read {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.reads)
}
