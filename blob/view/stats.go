package view

import (
	"sync/atomic"

	"cairn/blob/view/fetch"
)

// counters are the counters of an image, which only grow. wanted is in bytes.
type counters struct{ reads, wanted, memoryHits, diskHits, failures atomic.Int64 }

// countRead counts a successful read of n bytes.
func (c *counters) countRead(n int64) {
	c.reads.Add(1)
	c.wanted.Add(n)
}

// Stats holds the counters of an image since New, and the reads that block now.
type Stats struct {
	fetch.Stats

	Reads       int64 // successful reads
	BytesWanted int64 // bytes of the successful reads

	MemoryHits int64 // ReadResident calls that succeeded with bytes from memory; some bytes may be from the disk
	DiskHits   int64 // ReadResident calls that succeeded with bytes from the disk alone
	Failures   int64 // ReadAt calls that failed

	BytesAhead int64 // bytes that were prefetched, without those of Fill
	BytesUsed  int64 // bytes of BytesAhead that were read since
}

// Stats returns the image's counters.
func (v *Image) Stats() Stats {
	n := &v.count
	return Stats{
		Stats: v.chunks.Stats(),
		Reads: n.reads.Load(), BytesWanted: n.wanted.Load(),
		MemoryHits: n.memoryHits.Load(), DiskHits: n.diskHits.Load(), Failures: n.failures.Load(),
		BytesAhead: v.tracker.bytes.Load(), BytesUsed: v.tracker.used.Load(),
	}
}
