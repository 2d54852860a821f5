// Package imagecache keeps decompressed images on disk. Each image has a sparse file, and a map that lists the chunks
// in the file. Every returned byte was verified against its chunk's digest, by this process or by one that closed the
// file properly. After any other end each chunk is verified again before its first use. A full or failing disk loses
// cached chunks, and fails no read. The package does not know stores. It uses pread and pwrite, so a bad sector is an
// error and not a signal.
//
// Offer queues a chunk. The keeper, one goroutine for each Dir, writes it. A flush, which runs beside the keeper,
// makes it durable, and from then on it is proven. Only the keeper writes, punches, renames and closes open files,
// and it closes them between flushes. The type chunks decides which chunks are proven. The sampler, a second goroutine,
// hashes proven chunks again while the disk has little to do.
//
// The locks, outermost first:
//
//	Dir.opening                   held while an image is opened or closed, also during disk I/O
//	File.reading                  shared by the reads of a file, also during disk I/O; Close waits for them
//	Dir.mu, queue.mu, chunks.mu   held for an access to memory; no other lock is taken meanwhile
package imagecache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"cairn/blob"
	"cairn/internal/owndir"
)

const imagesName = "images"

// ErrBusy means that another process has the image's file open.
var ErrBusy = errors.New("in use by another process")

// Unlimited means no limit.
const Unlimited = -1

// Options of a Dir.
type Options struct {
	Limit int64        // bytes on disk of all images, or Unlimited; 0 is their size at Open plus half the free space
	Log   *slog.Logger // for failures of the disk and the end of them; nil logs nothing
}

// Dir is a directory of cached images. Safe for concurrent use.
type Dir struct {
	path     string
	root     atomic.Pointer[os.Root]
	limit    int64               // bytes; no limit if not positive
	wrap     func(medium) medium // wraps the files in tests; nil otherwise
	health   health
	queue    *queue
	tasks    chan func(*keeper) // tasks for the keeper, which takes none during a flush; closed to stop it
	running  sync.WaitGroup     // waits for the keeper and the sampler
	stop     context.CancelFunc // stops the sampler
	began    time.Time          // when the Dir was opened
	lastUse  atomic.Int64       // time of the last read or write of a file, in nanoseconds since began
	evicted  atomic.Int64       // bytes
	sampled  atomic.Int64       // bytes
	damaged  atomic.Int64       // chunks that the sampler found damaged
	nearFull atomic.Bool        // more than 7/8 of the limit are used

	opening sync.Mutex
	closed  bool // guarded by opening

	mu     sync.Mutex    // guards the fields below
	users  map[*File]int // open files, and how often each is open
	donors []*donor      // the most recently used one is first
}

// content identifies the bytes of a chunk.
type content struct {
	algorithm blob.Algorithm
	digest    blob.Digest
	size      int64
}

// Open opens a directory of cached images, and creates it if it does not exist. The caller must call Close.
func Open(path string, o Options) (*Dir, error) { return openDir(path, o, nil) }

func openDir(path string, o Options, wrap func(medium) medium) (*Dir, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	d := &Dir{path: path, limit: o.Limit, wrap: wrap, tasks: make(chan func(*keeper)), began: time.Now(), users: map[*File]int{}}
	d.queue = &queue{jobs: make(chan job, queueJobs), data: map[content][]byte{}}
	d.queue.room = semaphore.NewWeighted(queueBytes)
	d.health.log = o.Log
	if err := d.openRoot(); err != nil {
		return nil, fmt.Errorf("opening image cache: %w", err)
	}
	root := d.root.Load()
	if d.limit == 0 {
		d.limit = d.usedBytes() + freeBytes(root)/2
	}
	d.donors = findDonors(root)
	removeStaleRecords(root)
	d.running.Go((&keeper{dir: d}).runLoop)
	ctx, stop := context.WithCancel(context.Background())
	d.stop = stop
	d.running.Go(func() { (&sampler{dir: d}).runLoop(ctx) })
	return d, nil
}

// openRoot opens the directory, and creates it if it does not exist. The proven chunks in it are served, so other
// users must not be able to write it.
func (d *Dir) openRoot() error {
	root, err := owndir.Create(d.path)
	if err != nil {
		return err
	}
	if err := owndir.CreateDir(root, imagesName); err != nil {
		_ = root.Close()
		return err
	}
	if old := d.root.Swap(root); old != nil {
		_ = old.Close()
	}
	return nil
}

// Close writes and flushes the queued chunks, and closes all images. Their chunks need no verification at the next
// Open. The Dir must not be used afterwards.
func (d *Dir) Close() error {
	d.opening.Lock()
	defer d.opening.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	d.stop()
	close(d.tasks)
	d.running.Wait()
	var errs []error
	for _, f := range d.listFiles() {
		f.endReads()
		errs = append(errs, f.saveAndClose())
	}
	for _, n := range d.donors {
		n.file.Close()
	}
	errs = append(errs, d.root.Load().Close())
	return errors.Join(errs...)
}

// Image opens the cache of x's image, and creates it if it does not exist. It returns ErrBusy if another process has
// the image open. An image that is already open returns the same File. The File is closed by its last Close, or by
// the Close of the Dir.
func (d *Dir) Image(x *blob.Index) (*File, error) {
	d.opening.Lock()
	defer d.opening.Unlock()
	layout := layoutOf(x)
	for _, f := range d.listFiles() {
		if f.maps.layout == layout {
			d.addUser(f)
			return f, nil
		}
	}
	f, err := openFile(d, x, layout)
	if errors.Is(err, fs.ErrNotExist) { // the directory was removed
		if err = d.openRoot(); err == nil {
			f, err = openFile(d, x, layout)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("opening the cache of image %v: %w", layout.digest, err)
	}
	d.removeDonor(f.name)
	d.addUser(f)
	return f, nil
}

func (d *Dir) addUser(f *File) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.users[f]++
}

// closeImage closes f if the caller is its last user. f then becomes a donor.
func (d *Dir) closeImage(f *File) (err error) {
	d.opening.Lock()
	defer d.opening.Unlock()
	if d.closed || !d.removeUser(f) {
		return nil
	}
	f.endReads()
	d.runTask(func(*keeper) { err = f.saveAndClose() })
	if n := openDonor(d.root.Load(), f.name); n != nil {
		d.addDonor(n)
	}
	return err
}

// removeUser removes a user of f. It reports whether that was the last one.
func (d *Dir) removeUser(f *File) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	users := d.users[f]
	if users > 1 {
		d.users[f]--
	} else {
		delete(d.users, f)
	}
	return users == 1
}

// runTask runs a task in the keeper's goroutine while no flush is in progress, and waits for its end.
func (d *Dir) runTask(task func(*keeper)) {
	done := make(chan struct{})
	d.tasks <- func(k *keeper) {
		defer close(done)
		task(k)
	}
	<-done
}

func (d *Dir) listFiles() (files []*File) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for f := range d.users {
		files = append(files, f)
	}
	return files
}

// addDonor adds a donor, and closes the oldest ones beyond maxDonors.
func (d *Dir) addDonor(n *donor) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.donors = slices.Insert(d.donors, 0, n)
	for len(d.donors) > maxDonors {
		d.donors[maxDonors].file.Close()
		d.donors = slices.Delete(d.donors, maxDonors, maxDonors+1)
	}
}

// removeDonor closes the donor of an image. An open donor would keep the blocks of a removed file allocated.
func (d *Dir) removeDonor(name string) {
	d.mu.Lock()
	i := slices.IndexFunc(d.donors, func(n *donor) bool { return n.name == name })
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

// holder is a source of chunks to copy: an open File or a donor.
type holder interface {
	findChunk(c content) int // the chunk's number, or -1 if it is missing
	copyChunk(c content, dst []byte) bool
}

func (d *Dir) listHolders() (all []holder) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for f := range d.users {
		all = append(all, f)
	}
	for _, n := range d.donors {
		all = append(all, n)
	}
	return all
}

// Copy fills dst with a chunk of any image of the Dir that is on disk or queued, and verifies it. It reports whether
// it found one.
func (d *Dir) Copy(a blob.Algorithm, digest blob.Digest, dst []byte) bool {
	c := content{a, digest, int64(len(dst))}
	if data := d.queue.findData(c); data != nil {
		copy(dst, data)
		return true
	}
	return slices.ContainsFunc(d.listHolders(), func(h holder) bool { return h.copyChunk(c, dst) })
}

// MayCopy reports whether Copy may succeed. It reads no disk.
func (d *Dir) MayCopy(a blob.Algorithm, digest blob.Digest, size int64) bool {
	c := content{a, digest, size}
	return d.queue.findData(c) != nil ||
		slices.ContainsFunc(d.listHolders(), func(h holder) bool { return h.findChunk(c) >= 0 })
}

// Usage holds the size and the counters of a Dir.
type Usage struct {
	Bytes   int64 // bytes on disk of all images
	Limit   int64 // bytes; or Unlimited
	Evicted int64 // bytes evicted since Open
	Dropped int64 // chunks dropped since Open because the disk was too slow or failed
	Sampled int64 // bytes read and hashed again since Open, to find damage
	Damaged int64 // chunks that were damaged or unreadable then
	Working bool  // false for 30 s after a failure of the disk
}

// Usage measures the size of all images on disk, and returns it with the counters.
func (d *Dir) Usage() Usage {
	u := Usage{d.usedBytes(), d.limit, d.evicted.Load(), d.queue.dropped.Load(), d.sampled.Load(), d.damaged.Load(), d.health.isHealthy()}
	if u.Limit <= 0 {
		u.Limit = Unlimited
	}
	return u
}
