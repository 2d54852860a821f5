package imagecache

import (
	"math"
	"sync"
	"sync/atomic"

	"cairn/internal/bitset"
)

// chunks is the state of the chunks of an image's file. It decides which of them may be trusted, and does no I/O. Safe
// for concurrent use.
//
//	missing ─queue→ queued ─beginWrite, endWrite→ present, unflushed ─endFlush→ proven
//	found in the file after an unclean stop: present ─accept→ proven
//
// A chunk that is present and not proven is hashed at each read. accept has it proven only if it is flushed: the bytes
// that were read may be in the kernel's memory only. forget makes any of them missing.
type chunks struct {
	present  *bitset.Set   // said to be in the file; all-zero chunks, which are holes, too. Changed under mu
	proven   *bitset.Set   // those that are right. Changed under mu
	removals atomic.Uint64 // counts chunks that were forgotten: a read beside that does not count

	mu        sync.Mutex     // guards what follows
	queued    map[int]bool   // wait to be written
	unflushed map[int]uint64 // written or being written: the number of the flush that will cover the chunk, or writing
	broken    map[int]bool   // their place on the disk cannot be read; they are not written again
	flushes   uint64         // that have begun
	dirty     bool           // the next flush has something to do
	frozen    bool           // nothing is written any more
}

// writing is greater than the number of any flush.
const writing = math.MaxUint64

func newChunks(n int) *chunks {
	return &chunks{
		present: bitset.New(n), proven: bitset.New(n),
		queued: map[int]bool{}, unflushed: map[int]uint64{}, broken: map[int]bool{},
	}
}

// missing returns how many chunks are not proven.
func (c *chunks) missing() int { return c.proven.Len() - c.proven.Count() }

// beginRead reports whether the chunks from lo up to but not including hi are proven. mark is for endRead.
func (c *chunks) beginRead(lo, hi int) (mark uint64, ok bool) {
	mark = c.removals.Load()
	return mark, c.proven.Every(lo, hi)
}

// endRead reports whether the bytes that were read since beginRead were still proven.
func (c *chunks) endRead(mark uint64) bool { return c.removals.Load() == mark }

// wants reports whether chunk i is not proven and may be written.
func (c *chunks) wants(i int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mayWrite(i)
}

// mayWrite is wants for a caller that holds mu.
func (c *chunks) mayWrite(i int) bool { return !c.proven.Has(i) && !c.broken[i] && !c.frozen }

// pending reports whether chunk i waits to be written or flushed.
func (c *chunks) pending(i int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.queued[i] || c.unflushed[i] != 0
}

// queue reports whether chunk i is to be put into the queue.
func (c *chunks) queue(i int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.mayWrite(i) || c.queued[i] || c.unflushed[i] != 0 {
		return false
	}
	c.queued[i] = true
	return true
}

// unqueue takes note that chunk i is not in the queue any more.
func (c *chunks) unqueue(i int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.queued, i)
}

// beginWrite reports whether chunk i is to be written. It is not present until endWrite.
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

// endWrite has chunk i present, unless it was forgotten meanwhile: a flush that failed may have been of a part of it.
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

// beginFlush returns the number of a flush, and the chunks that are in the file when it has succeeded. ok is false if
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

// endFlush trusts the chunks that were written before a flush began, which has succeeded.
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

// failFlush forgets all chunks that are not flushed. A disk that fails does not tell which of them it lost, and it
// tells once, so that those that were written since are lost too. The kernel may show them still.
func (c *chunks) failFlush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.unflushed {
		c.remove(i)
	}
}

// accept trusts chunk i, which was read and is right, unless it was forgotten meanwhile.
func (c *chunks) accept(i int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.present.Has(i) && c.unflushed[i] == 0 {
		c.proven.Add(i)
	}
}

// forget makes chunk i missing, whatever it was. No proof of it that is under way counts.
func (c *chunks) forget(i int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remove(i)
}

// forgetForGood forgets the chunks from lo up to but not including hi, which cannot be read.
func (c *chunks) forgetForGood(lo, hi int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := lo; i < hi; i++ {
		c.remove(i)
		c.broken[i] = true
	}
}

// remove is forget for a caller that holds mu.
func (c *chunks) remove(i int) {
	c.proven.Remove(i)
	c.present.Remove(i)
	delete(c.unflushed, i)
	c.removals.Add(1)
	c.dirty = true
}

// setDirty gives the next flush something to do.
func (c *chunks) setDirty() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dirty = true
}

// freeze has nothing written any more. It reports whether that is new.
func (c *chunks) freeze() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.frozen
	c.frozen = true
	return !was
}

// complete reports whether all chunks are proven, in a file that is still written.
func (c *chunks) complete() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.missing() == 0 && !c.frozen
}
