package view

import (
	"slices"
	"sync"
	"time"

	"cairn/blob"
	"cairn/blob/profile"
	"cairn/internal/bitset"
)

// Recorder records the chunks of an image in the order of their first reads, for a limited time after the first read.
// Safe for concurrent use.
type Recorder struct {
	within time.Duration
	seen   *bitset.Set
	index  *blob.Index

	mu    sync.Mutex // guards the fields below
	reads []profile.Read
	first time.Time
}

// NewRecorder returns a Recorder of x's image. It ignores first reads later than within after the first one; 0 is no
// limit.
func NewRecorder(x *blob.Index, within time.Duration) *Recorder {
	return &Recorder{within: within, seen: bitset.New(x.Len()), index: x}
}

// recordRead records a read of chunk i. It ignores chunks of zeros, which are never fetched.
func (r *Recorder) recordRead(i int) {
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

// Reads returns the reads recorded so far.
func (r *Recorder) Reads() []profile.Read {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.reads)
}
