package imagecache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"cairn/blob"
	"cairn/internal/atomicfile"
	"cairn/internal/bitset"
)

const (
	partialName = "image.partial"
	rawName     = "image.raw" // the whole image: a name that only a complete file has
	mapName     = "map"
	indexName   = "index.caibx"
	lockName    = "lock"
	extentSize  = 1 << 20 // the time of last use is kept for each
)

// medium is the file below an image; tests have worse ones than the disk.
type medium interface {
	io.ReaderAt
	io.WriterAt
	readNow(p []byte, off int64) bool
	flush() error
	uncache()
	punch(off, n int64) error
	nextData(off int64) (from, to int64, err error)
	Stat() (os.FileInfo, error)
	Truncate(size int64) error
	Close() error
}

var _ medium = (*sparse)(nil)

// File is an image's file. Safe for concurrent use.
type File struct {
	dir      *Dir
	path     string // its directory
	index    *blob.Index
	table    *blob.Table
	lock     *os.File
	data     medium
	maps     mapFile // written by flushes and by close
	complete bool    // the file has its final name; for the keeper
	chunks   *chunks
	pinned   *bitset.Set // chunks that are evicted last
	opened   time.Time
	used     []atomic.Uint32 // when each extent was used last, in seconds since opened

	reading sync.RWMutex // shared by reads of data
	closed  bool         // guarded by reading
}

// Path is the directory that holds the image's file.
func (f *File) Path() string { return f.path }

// Has reports whether chunk i is here and proven.
func (f *File) Has(i int) bool { return f.chunks.proven.Has(i) }

// Claims reports whether chunk i may be here and must be proven first, by Prove.
func (f *File) Claims(i int) bool { return f.chunks.present.Has(i) && !f.Has(i) }

// Missing returns how many chunks are not here and proven.
func (f *File) Missing() int { return f.chunks.missing() }

// Wants reports whether chunk i is not here and would be kept.
func (f *File) Wants(i int) bool { return f.chunks.wants(i) }

// Queued reports whether chunk i waits to be written, or flushed.
func (f *File) Queued(i int) bool { return f.chunks.pending(i) }

// Pin has chunk i evicted after all that is not pinned.
func (f *File) Pin(i int) { f.pinned.Add(i) }

// Room reports whether the disk takes more: it has not failed, and the limit is not near.
func (f *File) Room() bool { return f.dir.health.ok() && !f.dir.nearFull.Load() }

// Offer has a proven chunk written in the background; data must not change any more. The chunk is not kept when
// the disk is behind, or fails.
func (f *File) Offer(i int, data []byte) {
	q := f.dir.queue
	q.add(job{f, i, data}, q.room.TryAcquire)
}

// OfferWait is Offer that waits until the disk is not behind. It reports whether it has queued the chunk.
func (f *File) OfferWait(ctx context.Context, i int, data []byte) bool {
	q := f.dir.queue
	return q.add(job{f, i, data}, func(room int64) bool { return q.room.Acquire(ctx, room) == nil })
}

// ReadNow fills p with the bytes from off on, which lie in chunks lo up to but not including hi. It reports false if
// some of them are not here, or the disk would have to be waited for. It does not allocate.
func (f *File) ReadNow(p []byte, off int64, lo, hi int) bool {
	f.reading.RLock()
	defer f.reading.RUnlock()
	mark, ok := f.chunks.beginRead(lo, hi)
	if !ok || f.closed || !f.data.readNow(p, off) {
		return false
	}
	f.stamp(off)
	return f.chunks.endRead(mark)
}

// Read is ReadNow that waits for the disk. A disk that cannot read takes the chunks out of the cache.
func (f *File) Read(p []byte, off int64, lo, hi int) bool {
	f.reading.RLock()
	defer f.reading.RUnlock()
	mark, ok := f.chunks.beginRead(lo, hi)
	if !ok || !f.readAt(p, off, lo, hi) {
		return false
	}
	f.stamp(off)
	return f.chunks.endRead(mark)
}

// Prove reads a chunk that is claimed into dst, whose size is the chunk's, and reports whether it is right. A
// chunk that is wrong is claimed no more.
func (f *File) Prove(i int, dst []byte) bool {
	f.reading.RLock()
	defer f.reading.RUnlock()
	c := f.index.At(i)
	if !f.Claims(i) || !f.readAt(dst, c.Offset, i, i+1) {
		return false
	}
	if f.index.Algorithm().Sum(dst) != c.Digest {
		f.chunks.forget(i)
		return false
	}
	f.stamp(c.Offset)
	f.chunks.accept(i)
	return true
}

// readAt reads bytes of the chunks from lo up to but not including hi. Chunks that cannot be read are forgotten for
// good. The caller holds reading.
func (f *File) readAt(p []byte, off int64, lo, hi int) bool {
	if f.closed {
		return false
	}
	_, err := f.data.ReadAt(p, off)
	if err == nil {
		return true
	}
	f.chunks.forgetForGood(lo, hi)
	f.dir.health.failed("reading "+f.path, err)
	return false
}

// stamp notes that the bytes at off were used now.
func (f *File) stamp(off int64) {
	now := uint32(time.Since(f.opened) / time.Second)
	if s := &f.used[off/extentSize]; s.Load() != now {
		s.Store(now)
	}
}

func (f *File) findChunk(c content) int {
	return findContent(f.index, f.table, c, f.chunks.present.Has)
}

// copyChunk fills dst with a chunk, and proves it.
func (f *File) copyChunk(c content, dst []byte) bool {
	i := f.findChunk(c)
	if i < 0 {
		return false
	}
	f.reading.RLock()
	defer f.reading.RUnlock()
	return f.readAt(dst, f.index.At(i).Offset, i, i+1) && c.algorithm.Sum(dst) == c.digest
}

// write writes a chunk, also to the first place that it has in the image: there findChunk finds it.
func (f *File) write(i int, data []byte) bool {
	ok := f.writeAt(i, data)
	if first := f.table.Find(f.index.At(i).Digest); first != i && f.index.At(first).Size == int64(len(data)) {
		f.writeAt(first, data)
	}
	return ok
}

func (f *File) writeAt(i int, data []byte) bool {
	if !f.chunks.beginWrite(i) {
		return false
	}
	off := f.index.At(i).Offset
	if _, err := f.data.WriteAt(data, off); err != nil {
		f.chunks.forget(i)
		f.dir.health.failed("writing "+f.path, err)
		return false
	}
	f.stamp(off)
	return f.chunks.endWrite(i)
}

// flush makes what was written durable, and then the map that speaks of it.
func (f *File) flush() {
	number, present, ok := f.chunks.beginFlush()
	if !ok {
		return
	}
	f.noticeRemoval()
	if err := f.data.flush(); err != nil {
		f.chunks.failFlush()
		f.dir.health.failed("flushing "+f.path, err)
		return
	}
	f.chunks.endFlush(number)
	if err := f.maps.save(mapState{bits: present}); err != nil {
		f.chunks.setDirty()
		f.dir.health.failed("writing the map of "+f.path, err)
		return
	}
	f.dir.health.worked()
}

// noticeRemoval stops writing to a file that was removed from its directory: no other process would find it.
func (f *File) noticeRemoval() {
	name := filepath.Join(f.path, lockName)
	_, err := os.Stat(name)
	if (errors.Is(err, fs.ErrNotExist) || err == nil && !isNamed(f.lock, name)) && f.chunks.freeze() {
		f.dir.health.log.Warn("the image cache was removed under the server; new chunks are kept in memory only",
			"directory", f.path)
	}
}

// nameComplete gives a file that is complete its final name.
func (f *File) nameComplete() {
	if f.complete || !f.chunks.complete() || !f.dir.health.ok() {
		return
	}
	if err := f.setComplete(true); err != nil {
		f.dir.health.failed("naming the complete image in "+f.path, err)
	}
}

// setComplete gives the file the name of a complete one, or of a partial one, durably.
func (f *File) setComplete(complete bool) error {
	if complete == f.complete {
		return nil
	}
	from, to := partialName, rawName
	if !complete {
		from, to = rawName, partialName
	}
	if err := os.Rename(filepath.Join(f.path, from), filepath.Join(f.path, to)); err != nil {
		return err
	}
	f.complete = complete
	return atomicfile.SyncDir(f.path)
}

// Close ends the use of the file by one of those who opened it. The last one closes it, and what is in it can still be
// copied by other images. Later reads find nothing.
func (f *File) Close() error { return f.dir.closeImage(f) }

// endReads waits for the reads that are under way. Later ones find nothing.
func (f *File) endReads() {
	f.reading.Lock()
	defer f.reading.Unlock()
	f.closed = true
}

// close closes the file, with a map that says so if all is flushed. It has no reads any more.
func (f *File) close() error {
	defer f.closeFiles()
	defer f.chunks.freeze()
	present := f.chunks.present.AppendTo(nil)
	if err := f.data.flush(); err != nil {
		return fmt.Errorf("flushing %s: %w", f.path, err)
	}
	f.chunks.endFlush(writing - 1) // it covers all that was written
	info, err := f.data.Stat()
	if err != nil {
		return fmt.Errorf("closing %s: %w", f.path, err)
	}
	s := mapState{bits: present, proven: f.chunks.proven.AppendTo(nil), clean: true}
	s.modified = info.ModTime().UnixNano()
	if err := f.maps.save(s); err != nil {
		return fmt.Errorf("writing the map of %s: %w", f.path, err)
	}
	f.nameComplete()
	return nil
}
