package imagecache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"cairn/blob"
	"cairn/internal/bitset"
)

const (
	partialName = "image.partial"
	rawName     = "image.raw" // the whole image: a name that only a complete file has
	mapName     = "map"
	indexName   = "index.caibx"
	lockName    = "lock"
	extentSize  = 1 << 20 // what the time of last use is known for
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
	dir    *Dir
	path   string // its directory
	index  *blob.Index
	table  *blob.Table
	layout mapLayout
	lock   *os.File
	data   medium
	maps   *sparse

	proven  *bitset.Set // chunks in the file that need no hashing; zeros, which are holes, too
	claimed *bitset.Set // chunks said to be in the file, to be proven first
	written *bitset.Set // those of them that were written and not flushed: they may not have come to the disk
	broken  *bitset.Set // chunks whose place on the disk cannot be read
	queued  *bitset.Set // chunks that wait to be written
	pinned  *bitset.Set // chunks that are evicted last
	gone    atomic.Bool // the file was removed: it is read, and written no more
	used    []atomic.Uint32
	holes   atomic.Uint64 // how often holes were punched: a read beside that does not count
	readers atomic.Int64
	closed  atomic.Bool
	users   int // of the file; guarded by the directory's mu
	epoch   time.Time

	mu       sync.Mutex  // guards what follows; held while a proof is taken for good, or a chunk is taken out
	recent   *bitset.Set // chunks written since the last flush began
	dirty    bool        // there are such, or bits were taken out
	sequence uint64
	complete bool // the file has its final name
}

// Path is the directory that holds the image's file.
func (f *File) Path() string { return f.path }

// Has says whether chunk i is here and proven.
func (f *File) Has(i int) bool { return f.proven.Has(i) }

// Claims says whether chunk i is thought to be here and must be proven first, by Prove.
func (f *File) Claims(i int) bool { return f.claimed.Has(i) }

// Missing is how many chunks are not here and proven.
func (f *File) Missing() int { return f.index.Len() - f.proven.Count() }

// Pin has chunk i evicted after all that is not pinned.
func (f *File) Pin(i int) { f.pinned.Add(i) }

// enter counts a reader in, unless the file is closed.
func (f *File) enter() bool {
	f.readers.Add(1)
	if !f.closed.Load() {
		return true
	}
	f.readers.Add(-1)
	return false
}

func (f *File) leave() { f.readers.Add(-1) }

// ReadNow fills p with the bytes from off on, which lie in chunks lo up to but not including hi, and says whether
// it did: when all are here and the disk need not be waited for. It does not allocate.
func (f *File) ReadNow(p []byte, off int64, lo, hi int) bool {
	if !f.enter() {
		return false
	}
	defer f.leave()
	holes := f.holes.Load()
	if !f.proven.Every(lo, hi) || !f.data.readNow(p, off) {
		return false
	}
	f.stamp(off)
	return f.holes.Load() == holes
}

// Read is ReadNow that waits for the disk. A disk that cannot read takes the chunks out of the cache.
func (f *File) Read(p []byte, off int64, lo, hi int) bool {
	if !f.enter() {
		return false
	}
	defer f.leave()
	holes := f.holes.Load()
	if !f.proven.Every(lo, hi) {
		return false
	}
	if _, err := f.data.ReadAt(p, off); err != nil {
		f.unreadable(lo, hi, err)
		return false
	}
	f.stamp(off)
	return f.holes.Load() == holes
}

// unreadable forgets chunks that cannot be read, for good when they are at fault, and tells why.
func (f *File) unreadable(lo, hi int, err error) {
	for i := lo; i < hi; i++ {
		f.forget(i)
		f.broken.Add(i)
	}
	f.dir.failed(fmt.Sprintf("reading %s", f.path), err)
}

// forget takes chunk i out, so that no proof of it that is under way counts.
func (f *File) forget(i int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.proven.Remove(i)
	f.claimed.Remove(i)
	f.written.Remove(i)
	f.dirty = true
}

// changed has the map written with the next flush.
func (f *File) changed() {
	f.mu.Lock()
	f.dirty = true
	f.mu.Unlock()
}

// stamp notes that the bytes at off were used now.
func (f *File) stamp(off int64) {
	now := uint32(time.Since(f.epoch) / time.Second)
	if s := &f.used[off/extentSize]; s.Load() != now {
		s.Store(now)
	}
}

// Prove reads a chunk that is claimed into dst, whose size is the chunk's, and says whether it is right. A
// chunk that is not is claimed no more.
func (f *File) Prove(i int, dst []byte) bool {
	if !f.enter() {
		return false
	}
	defer f.leave()
	if !f.claimed.Has(i) {
		return false
	}
	c, holes := f.index.At(i), f.holes.Load()
	if _, err := f.data.ReadAt(dst, c.Offset); err != nil {
		f.unreadable(i, i+1, err)
		return false
	}
	if f.index.Algorithm().Sum(dst) != c.Digest || f.holes.Load() != holes {
		f.claimed.Remove(i)
		f.written.Remove(i)
		return false
	}
	f.stamp(c.Offset)
	if f.accept(i); f.Missing() == 0 {
		f.changed() // it gets its final name
	}
	return true
}

// accept trusts chunk i, which was found right or flushed: unless it was taken out meanwhile, or was not flushed, so that
// what was read may be in the kernel's memory only.
func (f *File) accept(i int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.claimed.Has(i) && !f.written.Has(i) {
		f.proven.Add(i)
		f.claimed.Remove(i)
	}
}

// Offer has a proven chunk written in the background; data must not change any more. The chunk is not kept when
// the disk is behind, or fails.
func (f *File) Offer(i int, data []byte) {
	if !f.wanted(i) || f.Queued(i) {
		return
	}
	f.dir.enqueue(job{f, i, data})
}

// OfferWait is Offer that waits until the disk is not behind.
func (f *File) OfferWait(ctx context.Context, i int, data []byte) bool {
	return f.wanted(i) && !f.written.Has(i) && f.dir.enqueueWait(ctx, job{f, i, data})
}

// Wants says whether chunk i is not here and would be kept.
func (f *File) Wants(i int) bool { return f.wanted(i) }

// Queued says whether chunk i waits to be written, or flushed.
func (f *File) Queued(i int) bool { return f.queued.Has(i) || f.written.Has(i) }

// Room says whether the disk takes more: it has not failed, and the limit is not near.
func (f *File) Room() bool { return f.dir.working() && !f.dir.full.Load() }

func (f *File) wanted(i int) bool {
	return !f.proven.Has(i) && !f.broken.Has(i) && !f.closed.Load() && !f.gone.Load()
}

// store writes a chunk, also to the first place that it has in the image: there it is found by its digest.
func (f *File) store(i int, data []byte) bool {
	f.dir.keeping.Lock()
	defer f.dir.keeping.Unlock()
	ok := f.storeAt(i, data)
	if first := f.table.Find(f.index.At(i).Digest); first != i && f.index.At(first).Size == int64(len(data)) {
		f.storeAt(first, data)
	}
	return ok
}

func (f *File) storeAt(i int, data []byte) bool {
	if !f.wanted(i) || !f.written.Add(i) {
		return false
	}
	c := f.index.At(i)
	if _, err := f.data.WriteAt(data, c.Offset); err != nil {
		f.forget(i)
		f.dir.failed(fmt.Sprintf("writing %s", f.path), err)
		return false
	}
	f.written.Add(i) // a proof meanwhile may have found half of it
	f.claimed.Add(i) // before a flush looks for it
	f.mu.Lock()
	f.recent.Add(i)
	f.dirty = true
	f.mu.Unlock()
	f.stamp(c.Offset)
	return true
}

// find is the number of a chunk that may be copied from here, or -1.
func (f *File) find(a blob.Algorithm, digest blob.Digest, size int64) int {
	if a != f.index.Algorithm() {
		return -1
	}
	i := f.table.Find(digest)
	if i < 0 || f.index.At(i).Size != size || !f.proven.Has(i) && !f.claimed.Has(i) {
		return -1
	}
	return i
}

// copy fills dst with a chunk, and proves it.
func (f *File) copy(a blob.Algorithm, digest blob.Digest, dst []byte) bool {
	i := f.find(a, digest, int64(len(dst)))
	if i < 0 || !f.enter() {
		return false
	}
	defer f.leave()
	if _, err := f.data.ReadAt(dst, f.index.At(i).Offset); err != nil {
		f.unreadable(i, i+1, err)
		return false
	}
	return a.Sum(dst) == digest
}

// sync flushes the data, and then the map that speaks of it.
func (f *File) sync() {
	f.mu.Lock()
	if !f.dirty {
		f.mu.Unlock()
		return
	}
	written := f.recent
	f.recent, f.dirty = bitset.New(f.index.Len()), false
	f.mu.Unlock()
	f.look()
	bits := f.bits()
	if err := f.data.flush(); err != nil {
		f.lose()
		f.dir.failed(fmt.Sprintf("flushing %s", f.path), err)
		return
	}
	f.trust(written)
	if err := f.save(mapState{bits: bits}); err != nil {
		f.changed()
		f.dir.failed(fmt.Sprintf("writing the map of %s", f.path), err)
		return
	}
	f.dir.worked()
	f.finish()
}

// look notices that somebody has removed the file: nobody would find again what is written to it.
func (f *File) look() {
	there, err := os.Stat(filepath.Join(f.path, lockName))
	mine, bad := f.lock.Stat()
	if errors.Is(err, fs.ErrNotExist) || err == nil && bad == nil && !os.SameFile(mine, there) {
		if !f.gone.Swap(true) {
			f.dir.log.Warn("the image cache was removed under the server; new chunks are kept in memory only", "directory", f.path)
		}
	}
}

// trust takes in what was written and is on the disk now.
func (f *File) trust(written *bitset.Set) {
	for i := range written.Len() {
		if written.Has(i) && f.written.Remove(i) {
			f.accept(i)
		}
	}
}

// lose forgets all that was written to a disk that then failed to flush some of it: which, the kernel does not say, and
// it says so once, so that what is written just now is lost too. It may show it still, as long as it has the memory, so
// that no proof counts.
func (f *File) lose() {
	f.dir.keeping.Lock()
	defer f.dir.keeping.Unlock()
	for i := range f.written.Len() {
		if f.written.Has(i) {
			f.forget(i)
		}
	}
}

// bits are the chunks that are in the file, proven or claimed.
func (f *File) bits() []byte {
	bits, claimed := f.proven.AppendTo(nil), f.claimed.AppendTo(nil)
	for i := range bits {
		bits[i] |= claimed[i]
	}
	return bits
}

// save writes the next slot of the map, durably.
func (f *File) save(s mapState) error {
	s.sequence = f.sequence + 1
	at := int64(s.sequence%2) * f.layout.slotSize()
	if _, err := f.maps.WriteAt(f.layout.encode(s), at); err != nil {
		return err
	}
	if err := f.maps.flush(); err != nil {
		return err
	}
	f.sequence = s.sequence
	return nil
}

// finish gives a file that is complete its final name.
func (f *File) finish() {
	if f.Missing() > 0 || f.gone.Load() {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.complete {
		return
	}
	if err := f.rename(partialName, rawName); err != nil {
		f.dir.failed(fmt.Sprintf("naming the complete image in %s", f.path), err)
		return
	}
	f.complete = true
}

func (f *File) rename(from, to string) error {
	if err := os.Rename(filepath.Join(f.path, from), filepath.Join(f.path, to)); err != nil {
		return err
	}
	d, err := os.Open(f.path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Close says that its caller needs the file no more; the last one of those who opened it closes it. What is in it
// can still be copied by other images. Those who read it nevertheless get nothing.
func (f *File) Close() error {
	d := f.dir
	d.opening.Lock()
	defer d.opening.Unlock()
	d.mu.Lock()
	f.users--
	if f.users > 0 || d.closed || f.closed.Load() {
		d.mu.Unlock()
		return nil
	}
	d.open = slices.DeleteFunc(slices.Clone(d.open), func(other *File) bool { return other == f })
	d.mu.Unlock()
	err := f.close()
	if n := openDonor(f.path); n != nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.addDonor(n)
	}
	return err
}

// close ends the use of the file, cleanly if all is flushed.
func (f *File) close() error {
	f.closed.Store(true)
	for f.readers.Load() > 0 {
		time.Sleep(time.Millisecond) // a pread under way; none begins any more
	}
	f.dir.turn.Lock()
	defer f.dir.turn.Unlock()
	f.dir.keeping.Lock()
	defer f.dir.keeping.Unlock()
	err := f.closeClean()
	_ = f.data.Close() // all it could complain of, the flush has said
	_ = f.maps.Close()
	_ = f.lock.Close()
	return err
}

func (f *File) closeClean() error {
	bits := f.bits()
	if err := f.data.flush(); err != nil {
		return fmt.Errorf("flushing %s: %w", f.path, err)
	}
	f.trust(f.written)
	info, err := f.data.Stat()
	if err != nil {
		return fmt.Errorf("closing %s: %w", f.path, err)
	}
	s := mapState{bits: bits, proven: f.proven.AppendTo(nil), clean: true, modified: info.ModTime().UnixNano()}
	if err := f.save(s); err != nil {
		return fmt.Errorf("writing the map of %s: %w", f.path, err)
	}
	f.finish()
	return nil
}
