package imagecache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"cairn/blob"
	"cairn/internal/bitset"
	"cairn/internal/owndir"
)

const (
	partialName = "image.partial"
	rawName     = "image.raw" // the name of a complete image's file
	mapName     = "map"
	indexName   = "index.caibx"
	lockName    = "lock"
	extentSize  = 1 << 20 // bytes; each extent has a time of its last use
)

// medium is the file of an image. Tests wrap it to inject failures.
type medium interface {
	io.ReaderAt
	io.WriterAt
	readNow(p []byte, off int64) bool
	flushData() error
	dropCache()
	openMedium() io.ReaderAt // reads past the page cache; an io.Closer is closed after use
	punchHole(off, n int64) error
	nextData(off int64) (from, to int64, err error)
	Stat() (os.FileInfo, error)
	Truncate(size int64) error
	Close() error
}

var _ medium = (*sparse)(nil)

// File is the cache file of an image. Safe for concurrent use.
type File struct {
	dir      *Dir
	path     string // the image's directory
	name     string // the same below dir.root
	index    *blob.Index
	table    *blob.Table
	lock     *os.File
	data     medium
	maps     mapFile // written by flushChunks and saveAndClose
	complete bool    // the file has the name of a complete image; used by the keeper
	chunks   *chunks
	pinned   *bitset.Set // chunks to evict last
	opened   time.Time
	used     []atomic.Uint32 // time of each extent's last use, in seconds since opened
	sampled  time.Time       // start of the last pass over the chunks; used by the sampler

	reading sync.RWMutex // shared by reads of data
	closed  bool         // guarded by reading
}

// Path returns the directory of the image's file.
func (f *File) Path() string { return f.path }

// Has reports whether the file holds chunk i, proven.
func (f *File) Has(i int) bool { return f.chunks.proven.Has(i) }

// Claims reports whether the file may hold chunk i, and Prove must verify it first.
func (f *File) Claims(i int) bool { return f.chunks.present.Has(i) && !f.Has(i) }

// Missing returns the number of chunks that the file does not hold, or holds unproven.
func (f *File) Missing() int { return f.chunks.countMissing() }

// Wants reports whether chunk i is not proven and would be written.
func (f *File) Wants(i int) bool { return f.chunks.isWritable(i) }

// Queued reports whether chunk i is queued, being written or not flushed.
func (f *File) Queued(i int) bool { return f.chunks.isPending(i) }

// Pin makes the eviction of chunk i wait until no unpinned chunk is left.
func (f *File) Pin(i int) { f.pinned.Add(i) }

// Room reports whether the disk is healthy and at most 7/8 of the limit are used.
func (f *File) Room() bool { return f.dir.health.isHealthy() && !f.dir.nearFull.Load() }

// Offer queues a verified chunk to be written. data must not change any more. Offer drops the chunk if the queue is
// full or the disk fails.
func (f *File) Offer(i int, data []byte) {
	q := f.dir.queue
	q.addJob(job{f, i, data}, q.room.TryAcquire)
}

// OfferWait is like Offer, but blocks until the queue has room or ctx ends. It reports whether it has queued the
// chunk.
func (f *File) OfferWait(ctx context.Context, i int, data []byte) bool {
	q := f.dir.queue
	return q.addJob(job{f, i, data}, func(room int64) bool { return q.room.Acquire(ctx, room) == nil })
}

// ReadNow fills p with the bytes at off, which lie in the chunks [lo, hi). It reports false if a chunk is missing, or
// the read would block on the disk. It does not allocate. On a file system without RWF_NOWAIT it may block.
func (f *File) ReadNow(p []byte, off int64, lo, hi int) bool {
	f.reading.RLock()
	defer f.reading.RUnlock()
	mark, ok := f.chunks.beginRead(lo, hi)
	if !ok || f.closed || !f.data.readNow(p, off) {
		return false
	}
	f.noteUse(off)
	return f.chunks.endRead(mark)
}

// Read is like ReadNow, but may block on the disk. If the disk fails to read, the chunks count as missing from then
// on.
func (f *File) Read(p []byte, off int64, lo, hi int) bool {
	f.reading.RLock()
	defer f.reading.RUnlock()
	mark, ok := f.chunks.beginRead(lo, hi)
	if !ok || !f.readAt(p, off, lo, hi) {
		return false
	}
	f.noteUse(off)
	return f.chunks.endRead(mark)
}

// Prove reads a claimed chunk into dst, which must have its size, and verifies it. It reports whether the chunk is
// valid. An invalid chunk is not claimed any more.
func (f *File) Prove(i int, dst []byte) bool {
	f.reading.RLock()
	defer f.reading.RUnlock()
	c := f.index.At(i)
	if !f.Claims(i) || !f.readAt(dst, c.Offset, i, i+1) {
		return false
	}
	if f.index.Algorithm().Sum(dst) != c.Digest {
		f.chunks.markMissing(i)
		return false
	}
	f.noteUse(c.Offset)
	f.chunks.markProven(i)
	return true
}

// readAt reads bytes of the chunks [lo, hi). If the disk fails to read, it marks the chunks as broken. The caller
// must hold reading.
func (f *File) readAt(p []byte, off int64, lo, hi int) bool {
	if f.closed {
		return false
	}
	_, err := f.data.ReadAt(p, off)
	if err == nil {
		return true
	}
	f.chunks.markBroken(lo, hi)
	f.dir.health.noteFailure("reading "+f.path, err)
	return false
}

// noteUse records the time of a use of the extent at off.
func (f *File) noteUse(off int64) {
	now := uint32(time.Since(f.opened) / time.Second)
	if s := &f.used[off/extentSize]; s.Load() != now {
		s.Store(now)
		f.dir.noteUse()
	}
}

func (f *File) findChunk(c content) int {
	return findContent(f.index, f.table, c, f.chunks.present.Has)
}

// copyChunk fills dst with a chunk and verifies it.
func (f *File) copyChunk(c content, dst []byte) bool {
	i := f.findChunk(c)
	if i < 0 {
		return false
	}
	f.reading.RLock()
	defer f.reading.RUnlock()
	return f.readAt(dst, f.index.At(i).Offset, i, i+1) && c.algorithm.Sum(dst) == c.digest
}

// writeChunk writes a chunk, and also writes it to its first position in the image, where findChunk looks for it.
func (f *File) writeChunk(i int, data []byte) bool {
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
		f.chunks.markMissing(i)
		f.dir.health.noteFailure("writing "+f.path, err)
		return false
	}
	f.noteUse(off)
	return f.chunks.endWrite(i)
}

// flushChunks flushes the written chunks, and then writes and flushes the map that lists them.
func (f *File) flushChunks() {
	number, present, ok := f.chunks.beginFlush()
	if !ok {
		return
	}
	f.checkRemoved()
	if err := f.data.flushData(); err != nil {
		f.chunks.failFlush()
		f.dir.health.noteFailure("flushing "+f.path, err)
		return
	}
	f.chunks.endFlush(number)
	if err := f.maps.writeState(mapState{bits: present}); err != nil {
		f.chunks.setDirty()
		f.dir.health.noteFailure("writing the map of "+f.path, err)
		return
	}
	f.dir.health.noteSuccess()
}

// checkRemoved stops the writes if the image's directory was removed, since no other process could find the file.
func (f *File) checkRemoved() {
	there, err := os.Lstat(filepath.Join(f.path, lockName)) // by path, since a moved directory is not found any more
	if (errors.Is(err, fs.ErrNotExist) || err == nil && !isFile(f.lock, there)) && f.chunks.freezeWrites() {
		f.dir.health.log.Warn("the image cache was removed under the server; new chunks are kept in memory only",
			"directory", f.path)
	}
}

// nameComplete renames the file of a complete image to rawName, and a file that has lost chunks back to partialName.
func (f *File) nameComplete() {
	complete := f.chunks.isComplete()
	if complete == f.complete || !complete && f.Missing() == 0 || !f.dir.health.isHealthy() {
		return
	}
	if err := f.setComplete(complete); err != nil {
		f.dir.health.noteFailure("renaming the image in "+f.path, err)
	}
}

// setComplete gives the file the name of a complete or of a partial image, and syncs the directory.
func (f *File) setComplete(complete bool) error {
	if complete == f.complete {
		return nil
	}
	from, to := partialName, rawName
	if !complete {
		from, to = rawName, partialName
	}
	root := f.dir.root.Load()
	if err := root.Rename(path.Join(f.name, from), path.Join(f.name, to)); err != nil {
		return err
	}
	f.complete = complete
	return owndir.SyncDir(root, f.name)
}

// Close ends the use of the file by one of its users. The Close of the last user closes the file, and later reads
// fail. Other images can still copy its chunks.
func (f *File) Close() error { return f.dir.closeImage(f) }

// endReads waits for the reads in progress. Later reads fail.
func (f *File) endReads() {
	f.reading.Lock()
	defer f.reading.Unlock()
	f.closed = true
}

// saveAndClose flushes the file, writes a map that marks it as cleanly closed, and closes it. The caller must have
// called endReads.
func (f *File) saveAndClose() error {
	defer f.closeFiles()
	defer f.chunks.freezeWrites()
	present := f.chunks.present.AppendTo(nil)
	if err := f.data.flushData(); err != nil {
		return fmt.Errorf("flushing %s: %w", f.path, err)
	}
	f.chunks.endFlush(writing - 1) // the flush covers all written chunks
	info, err := f.data.Stat()
	if err != nil {
		return fmt.Errorf("closing %s: %w", f.path, err)
	}
	s := mapState{bits: present, proven: f.chunks.proven.AppendTo(nil), clean: true}
	s.modified = info.ModTime().UnixNano()
	if err := f.maps.writeState(s); err != nil {
		return fmt.Errorf("writing the map of %s: %w", f.path, err)
	}
	f.nameComplete()
	return nil
}
