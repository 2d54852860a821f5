package view

import (
	"cmp"
	"iter"
	"slices"
	"sync/atomic"
	"time"

	"cairn/blob"
)

// counters are what an image counts. All grow.
type counters struct {
	reads, wanted              atomic.Int64
	memoryHits, diskHits       atomic.Int64
	proven, copied             atomic.Int64
	fetched, fetchedBytes      atomic.Int64
	ahead, aheadUsed           atomic.Int64
	failures, stalls, stallFor atomic.Int64
}

// Stats is what an image has done so far, and what it does now.
type Stats struct {
	Reads       int64 // that were answered
	BytesWanted int64 // by them

	MemoryHits int64 // reads that were answered at once, from memory
	DiskHits   int64 // and from the image's file

	ProvenChunks int64 // chunks of the image's file that were proven anew, after an unclean stop
	CopiedChunks int64 // chunks that another image's file had, or another place in this one's
	Fetched      int64 // chunks that came from the store
	BytesFetched int64 // of them, decoded

	BytesAhead int64 // that were fetched before anybody asked for them, filling apart
	BytesUsed  int64 // of them, read since; the rest is wasted, so far

	Failures  int64         // reads that failed
	Stalls    int64         // reads that had to wait
	StallTime time.Duration // for so long, together
	Waiting   []Stall       // the reads that wait now, the longest first

	BytesLocal int64 // of the image, that no store is needed for, zeros included
	Size       int64 // of the image
}

// Stall is a read that waits.
type Stall struct {
	Chunk blob.Chunk // what it waits for
	Since time.Time
	Err   error // why the store did not answer, when it is away
}

// Stats counts. It walks through the whole index.
func (v *Image) Stats() Stats {
	n := &v.count
	s := Stats{
		Reads: n.reads.Load(), BytesWanted: n.wanted.Load(),
		MemoryHits: n.memoryHits.Load(), DiskHits: n.diskHits.Load(),
		ProvenChunks: n.proven.Load(), CopiedChunks: n.copied.Load(),
		Fetched: n.fetched.Load(), BytesFetched: n.fetchedBytes.Load(),
		BytesAhead: n.ahead.Load(), BytesUsed: n.aheadUsed.Load(),
		Failures: n.failures.Load(), Stalls: n.stalls.Load(), StallTime: time.Duration(n.stallFor.Load()),
		Waiting: v.waitingNow(), Size: v.Size(),
	}
	for length, local := range v.Cached(0, v.Size()) {
		if local {
			s.BytesLocal += length
		}
	}
	return s
}

func (v *Image) waitingNow() []Stall {
	c := v.source.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []Stall
	for w := range v.waits {
		list = append(list, Stall{v.index.At(w.chunk), w.since, w.entry.away})
	}
	slices.SortFunc(list, func(a, b Stall) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Chunk.Offset, b.Chunk.Offset))
	})
	return list
}

// Cached yields the lengths of the runs that make up n bytes from off on, and whether a read of them needs no
// store: they are zeros, on disk or in memory. The range must lie within the image.
func (v *Image) Cached(off, n int64) iter.Seq2[int64, bool] {
	return func(yield func(int64, bool) bool) {
		run, local := int64(0), false
		for part := range v.pieces(off, n) {
			is := v.isLocal(part.number, part.chunk)
			if is != local && run > 0 {
				if !yield(run, local) {
					return
				}
				run = 0
			}
			run, local = run+part.size, is
		}
		if run > 0 {
			yield(run, local)
		}
	}
}

func (v *Image) isLocal(i int, c blob.Chunk) bool {
	if v.index.IsZero(i) || v.disk != nil && v.disk.Has(i) {
		return true
	}
	m := v.source.cache
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.chunks[v.key(c)]
	return e != nil && e.data != nil
}
