// Package imagecache keeps decoded images on disk: each in a sparse file of its own, whose map says which chunks
// are in it. Every byte that it returns was proven against the chunk's digest by this process, or by one that closed
// the file; after any other end it is proven again before its first use. A full or failing disk costs what it kept, and
// no read. The package knows nothing of stores. It reads and writes with pread and pwrite, so that a bad sector is an
// error and no signal.
//
// A chunk goes this way: Offer puts it into the queue; the keeper, one goroutine for each Dir, writes it; a flush
// beside the keeper makes it durable, and from then on it is proven. Only the keeper writes, punches, renames and
// closes files that are open, and it closes them between flushes. The chunks type decides what may be trusted.
//
// Locks, outermost first:
//
//	Dir.opening   held while an image is opened or closed, over disk I/O
//	File.reading  shared by the reads of a file, over disk I/O; Close waits for them
//	Dir.mu, queue.mu, chunks.mu   held for a look-up or a change in memory; no other lock is taken meanwhile
package imagecache

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"

	"cairn/blob"
)

const imagesName = "images"

// ErrBusy means that another process has the image's file open.
var ErrBusy = errors.New("in use by another process")

// Unlimited is a limit that nothing reaches.
const Unlimited = -1

// Options of a Dir. The zero value logs nothing.
type Options struct {
	Limit int64        // bytes on disk of all images; 0 is what they have when it is opened, and half of what is free
	Log   *slog.Logger // is told when the disk fails, and when it works again
}

// Dir is a directory of cached images. Safe for concurrent use.
type Dir struct {
	path     string // has a directory for each image
	limit    int64
	wrap     func(medium) medium // of the files; nil but in tests
	health   health
	queue    *queue
	tasks    chan func(*keeper) // for the keeper, which takes none while it flushes; closed to end it
	ended    sync.WaitGroup     // the keeper
	evicted  atomic.Int64       // bytes
	nearFull atomic.Bool        // the limit is near

	opening sync.Mutex
	closed  bool // guarded by opening

	mu     sync.Mutex    // guards what follows
	open   map[*File]int // how many users each has
	donors []*donor      // the one that was used last first
}

// content identifies the bytes of a chunk.
type content struct {
	algorithm blob.Algorithm
	digest    blob.Digest
	size      int64
}

// Open opens a directory of cached images, and makes it if need be. The caller must Close.
func Open(path string, o Options) (*Dir, error) { return open(path, o, nil) }

func open(path string, o Options, wrap func(medium) medium) (*Dir, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	images := filepath.Join(path, imagesName)
	if err := os.MkdirAll(images, 0o700); err != nil {
		return nil, fmt.Errorf("opening image cache: %w", err)
	}
	d := &Dir{path: images, limit: o.Limit, wrap: wrap, tasks: make(chan func(*keeper)), open: map[*File]int{}}
	d.queue = &queue{jobs: make(chan job, queueJobs), data: map[content][]byte{}}
	d.queue.room = semaphore.NewWeighted(queueBytes)
	d.health.log = o.Log
	if d.limit == 0 {
		d.limit = d.usedBytes() + freeBytes(images)/2
	}
	d.donors = findDonors(images)
	d.forgetEvicted()
	d.ended.Go((&keeper{dir: d}).run)
	return d, nil
}

// Close writes and flushes what was offered, and closes all images: what is in them need not be proven again. The Dir
// must not be used afterwards.
func (d *Dir) Close() error {
	d.opening.Lock()
	defer d.opening.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	close(d.tasks)
	d.ended.Wait()
	var errs []error
	for _, f := range d.openFiles() {
		f.endReads()
		errs = append(errs, f.close())
	}
	for _, n := range d.donors {
		n.file.Close()
	}
	return errors.Join(errs...)
}

// Image opens the file of x's image, or makes it. ErrBusy means that another process has it. An image that is open
// already is the same File again. It is closed with the directory, if not before.
func (d *Dir) Image(x *blob.Index) (*File, error) {
	d.opening.Lock()
	defer d.opening.Unlock()
	layout := layoutOf(x)
	for _, f := range d.openFiles() {
		if f.maps.layout == layout {
			d.addUser(f)
			return f, nil
		}
	}
	f, err := openFile(d, x, layout)
	if err != nil {
		return nil, fmt.Errorf("opening the cache of image %v: %w", layout.digest, err)
	}
	d.removeDonor(f.path)
	d.addUser(f)
	return f, nil
}

func (d *Dir) addUser(f *File) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open[f]++
}

// closeImage closes f if the caller is its last user. f becomes a donor.
func (d *Dir) closeImage(f *File) (err error) {
	d.opening.Lock()
	defer d.opening.Unlock()
	if d.closed || !d.removeUser(f) {
		return nil
	}
	f.endReads()
	d.do(func(*keeper) { err = f.close() })
	if n := openDonor(f.path); n != nil {
		d.addDonor(n)
	}
	return err
}

// removeUser reports whether that was the last user of f, which is then not open any more.
func (d *Dir) removeUser(f *File) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	users := d.open[f]
	if users > 1 {
		d.open[f]--
	} else {
		delete(d.open, f)
	}
	return users == 1
}

// do has the keeper run a task when no flush is under way, and waits for its end.
func (d *Dir) do(task func(*keeper)) {
	done := make(chan struct{})
	d.tasks <- func(k *keeper) {
		defer close(done)
		task(k)
	}
	<-done
}

func (d *Dir) openFiles() (files []*File) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for f := range d.open {
		files = append(files, f)
	}
	return files
}

// addDonor adds a donor, in the place of the oldest if there are enough.
func (d *Dir) addDonor(n *donor) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.donors = slices.Insert(d.donors, 0, n)
	for len(d.donors) > maxDonors {
		d.donors[maxDonors].file.Close()
		d.donors = slices.Delete(d.donors, maxDonors, maxDonors+1)
	}
}

// removeDonor closes the donor in a directory: the bytes of a removed file stay on the disk as long as it is open.
func (d *Dir) removeDonor(path string) {
	d.mu.Lock()
	i := slices.IndexFunc(d.donors, func(n *donor) bool { return filepath.Dir(n.file.Name()) == path })
	var n *donor
	if i >= 0 {
		n = d.donors[i]
		d.donors = slices.Delete(d.donors, i, i+1)
	}
	d.mu.Unlock()
	if n != nil {
		n.file.Close()
	}
}

// holder has chunks that may be copied: an open File or a donor.
type holder interface {
	findChunk(c content) int // its number; -1 if it is not here
	copyChunk(c content, dst []byte) bool
}

func (d *Dir) holders() (all []holder) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for f := range d.open {
		all = append(all, f)
	}
	for _, n := range d.donors {
		all = append(all, n)
	}
	return all
}

// Copy fills dst with a chunk that is on disk as part of any image here, or will be soon. It reports whether there is
// one. The bytes are proven.
func (d *Dir) Copy(a blob.Algorithm, digest blob.Digest, dst []byte) bool {
	c := content{a, digest, int64(len(dst))}
	if data := d.queue.find(c); data != nil {
		copy(dst, data)
		return true
	}
	return slices.ContainsFunc(d.holders(), func(h holder) bool { return h.copyChunk(c, dst) })
}

// MayCopy reports whether Copy is worth the attempt. It answers from memory.
func (d *Dir) MayCopy(a blob.Algorithm, digest blob.Digest, size int64) bool {
	c := content{a, digest, size}
	return d.queue.find(c) != nil ||
		slices.ContainsFunc(d.holders(), func(h holder) bool { return h.findChunk(c) >= 0 })
}

// Usage is what the images take on disk, and what was not kept.
type Usage struct {
	Bytes   int64
	Limit   int64 // Unlimited if there is none
	Evicted int64 // bytes so far
	Dropped int64 // chunks so far that were not kept because the disk was too slow or failed
	Working bool  // false for a while after the disk has failed
}

// Usage looks at all images.
func (d *Dir) Usage() Usage {
	u := Usage{d.usedBytes(), d.limit, d.evicted.Load(), d.queue.dropped.Load(), d.health.ok()}
	if u.Limit <= 0 {
		u.Limit = Unlimited
	}
	return u
}
