package imagecache

import (
	"math"
	"sync"
	"sync/atomic"

	"cairn/internal/bitset"
)

// chunks tracks the state of each chunk of an image's file. It does no I/O. Safe for concurrent use.
//
//	missing ─markQueued→ queued ─beginWrite, endWrite→ present, unflushed ─endFlush→ proven
//	found in the file after an unclean stop: present ─markProven→ proven
//
// A chunk that is present but not proven is hashed at each read. markProven makes it proven only if it is flushed: an
// unflushed chunk may have been read from the page cache. markMissing makes any chunk missing.
type chunks struct {
	present  *bitset.Set   // chunks that the file may hold, and chunks of zeros, which are holes; written with mu held
	proven   *bitset.Set   // present chunks that are verified and flushed; written with mu held
	removals atomic.Uint64 // how often a chunk became missing; a read during a removal is invalid

	mu        sync.Mutex     // guards the fields below
	queued    map[int]bool   // chunks in the queue
	unflushed map[int]uint64 // chunks not flushed: the number of the flush that will cover them, or writing
	broken    map[int]bool   // chunks whose range on the disk cannot be read; never written again
	flushes   uint64         // number of the last flush that has started
	dirty     bool           // the next flush has work
	frozen    bool           // no chunk is written any more
}

// writing is greater than the number of any flush.
const writing = math.MaxUint64

func newChunks(n int) *chunks {
	return &chunks{
		present: bitset.New(n), proven: bitset.New(n),
		queued: map[int]bool{}, unflushed: map[int]uint64{}, broken: map[int]bool{},
	}
}

// countMissing returns the number of chunks that are not proven.
func (c *chunks) countMissing() int { return c.proven.Len() - c.proven.Count() }

// beginRead reports whether the chunks [lo, hi) are proven. mark must be passed to endRead.
func (c *chunks) beginRead(lo, hi int) (mark uint64, ok bool) {
	mark = c.removals.Load()
	return mark, c.proven.Every(lo, hi)
}

// endRead reports whether the chunks are still proven since beginRead, so that the bytes read are valid.
func (c *chunks) endRead(mark uint64) bool { return c.removals.Load() == mark }

// isWritable reports whether chunk i is not proven and may be written.
func (c *chunks) isWritable(i int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mayWrite(i)
}

// mayWrite is isWritable for a caller that holds mu.
func (c *chunks) mayWrite(i int) bool { return !c.proven.Has(i) && !c.broken[i] && !c.frozen }

// isPending reports whether chunk i is queued, being written or not flushed.
func (c *chunks) isPending(i int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.queued[i] || c.unflushed[i] != 0
}

// markQueued marks chunk i as queued. It reports false if the chunk need not or cannot be written.
func (c *chunks) markQueued(i int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.mayWrite(i) || c.queued[i] || c.unflushed[i] != 0 {
		return false
	}
	c.queued[i] = true
	return true
}

// clearQueued marks chunk i as not queued.
func (c *chunks) clearQueued(i int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.queued, i)
}

// beginWrite reports whether chunk i must be written. If so, the chunk is not present until endWrite.
func (c *chunks) beginWrite(i int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.mayWrite(i) || c.unflushed[i] != 0 {
		return false
	}
	c.present.Remove(i)
	c.unflushed[i] = writing
	return true
}

// endWrite marks chunk i as present, and reports whether it is. The chunk stays missing if it became missing during
// the write: a failed flush may have covered a part of it.
func (c *chunks) endWrite(i int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.unflushed[i] != writing {
		return false
	}
	c.unflushed[i] = c.flushes + 1
	c.present.Add(i)
	c.dirty = true
	return true
}

// beginFlush returns the number of a new flush, and the chunks that the file holds after the flush. ok is false if
// there is nothing to flush.
func (c *chunks) beginFlush() (number uint64, bits []byte, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.dirty {
		return 0, nil, false
	}
	c.dirty = false
	c.flushes++
	return c.flushes, c.present.AppendTo(nil), true
}

// endFlush marks the chunks as proven that were written before a successful flush started.
func (c *chunks) endFlush(number uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, covered := range c.unflushed {
		if covered <= number {
			delete(c.unflushed, i)
			c.proven.Add(i)
		}
	}
}

// failFlush marks all unflushed chunks as missing. The kernel reports a write error once, and does not say which
// pages it lost. So chunks that were written during the flush count as lost too. The page cache may still hold their
// bytes.
func (c *chunks) failFlush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.unflushed {
		c.setMissing(i)
	}
}

// markProven marks chunk i as proven after a verified read, unless it became missing or was written meanwhile.
func (c *chunks) markProven(i int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.present.Has(i) && c.unflushed[i] == 0 {
		c.proven.Add(i)
	}
}

// markMissing marks chunk i as missing, in any state. It invalidates reads and verifications in progress.
func (c *chunks) markMissing(i int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setMissing(i)
}

// markDamaged marks chunk i as missing, unless it may have changed since beginRead returned mark. It reports whether it
// did. If broken is set, the chunk is not written again.
func (c *chunks) markDamaged(i int, mark uint64, broken bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.endRead(mark) || !c.proven.Has(i) {
		return false
	}
	c.setMissing(i)
	if broken {
		c.broken[i] = true
	}
	return true
}

// markBroken marks the chunks [lo, hi) as missing and unreadable. They are not written again.
func (c *chunks) markBroken(lo, hi int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := lo; i < hi; i++ {
		c.setMissing(i)
		c.broken[i] = true
	}
}

// setMissing is markMissing for a caller that holds mu.
func (c *chunks) setMissing(i int) {
	c.proven.Remove(i)
	c.present.Remove(i)
	delete(c.unflushed, i)
	c.removals.Add(1)
	c.dirty = true
}

// setDirty makes the next flush write the map.
func (c *chunks) setDirty() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dirty = true
}

// freezeWrites stops all writes. It reports whether they were not stopped before.
func (c *chunks) freezeWrites() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.frozen
	c.frozen = true
	return !was
}

// isComplete reports whether all chunks are proven and writes are not stopped.
func (c *chunks) isComplete() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.countMissing() == 0 && !c.frozen
}
