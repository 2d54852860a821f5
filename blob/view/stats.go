package view

import (
	"sync/atomic"

	"cairn/blob/view/fetch"
)

// counters are what an image counts. All grow.
type counters struct{ reads, wanted, memoryHits, diskHits, failures atomic.Int64 }

// answer counts a read of n bytes that succeeded.
func (c *counters) answer(n int64) {
	c.reads.Add(1)
	c.wanted.Add(n)
}

// Stats is what an image has done so far, and what it does now.
type Stats struct {
	fetch.Stats

	Reads       int64 // that were answered
	BytesWanted int64 // by them

	MemoryHits int64 // reads that were answered at once, from memory
	DiskHits   int64 // and from the image's disk
	Failures   int64 // reads that failed

	BytesAhead int64 // that were prefetched, filling apart
	BytesUsed  int64 // of them, read since; the rest is wasted, so far
}

// Stats counts.
func (v *Image) Stats() Stats {
	n := &v.count
	return Stats{
		Stats: v.chunks.Stats(),
		Reads: n.reads.Load(), BytesWanted: n.wanted.Load(),
		MemoryHits: n.memoryHits.Load(), DiskHits: n.diskHits.Load(), Failures: n.failures.Load(),
		BytesAhead: v.early.bytes.Load(), BytesUsed: v.early.used.Load(),
	}
}
