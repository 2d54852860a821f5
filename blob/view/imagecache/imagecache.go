// Package imagecache keeps decoded images on disk: each in a sparse file of its own, whose map says which chunks
// are in it. What it hands out was proven against the chunk's digest by this process, or by one that closed
// the file; after any other end it is proven again before its first use. It is a help and never a condition: a full or
// failing disk costs what it kept, and no read. It knows nothing of stores, and it reads and writes with
// pread and pwrite, so that a bad sector is an error and no signal.
package imagecache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"cairn/blob"
)

const (
	queueBytes  = 20 << 20 // wait to be written, at most
	batchBytes  = 16 << 20 // are written before they are flushed, if not a batchTime has gone by
	unsyncedMax = 40 << 20 // are written and not flushed, at most: what a crash may cost, with what is queued
	batchTime   = time.Second
	lookEvery   = 16               // batch times: how often the limit is looked at when nothing is written here
	retryTime   = 30 * time.Second // after which a disk that failed is tried again
	imagesName  = "images"
)

// ErrBusy says that another process has the image's file open.
var ErrBusy = errors.New("in use by another process")

// Unlimited is a limit that nothing reaches.
const Unlimited = -1

// Options of a Dir. The zero value says nothing.
type Options struct {
	Limit int64        // bytes on disk of all images; 0 is what they have when it is opened, and half of what is free
	Log   *slog.Logger // hears of a disk that fails, and that works again
}

// Dir is a directory of cached images. Safe for concurrent use.
type Dir struct {
	path  string
	limit int64
	log   *slog.Logger
	room  *semaphore.Weighted // of what waits to be written
	queue chan job
	wake  chan struct{} // for the keeper, when there is enough to flush
	ended sync.WaitGroup
	stop  chan struct{}

	paused  atomic.Int64 // until then, in nanoseconds since 1970, nothing is written
	failing atomic.Bool  // the last write or flush failed
	dropped atomic.Int64
	evicted atomic.Int64
	full    atomic.Bool // the limit is near

	opening sync.Mutex // held while images are opened or closed, which takes its time; before all others

	mu       sync.Mutex // guards what follows
	open     []*File
	donors   []*donor
	pending  map[content][]byte // what waits to be written
	unsynced int64
	flushed  *sync.Cond // unsynced has shrunk
	closed   bool

	keeping sync.Mutex // held while files are written or punched; before mu
	turn    sync.Mutex // held while maps are written; before keeping

	wrap func(medium) medium // of the files; nil but in tests
}

// content is what a chunk is.
type content struct {
	algorithm blob.Algorithm
	digest    blob.Digest
	size      int64
}

func (j job) content() content {
	x := j.file.index
	return content{x.Algorithm(), x.At(j.i).Digest, int64(len(j.data))}
}

// room is how much of what may wait to be written a job takes: a chunk that is larger than all of it waits alone.
func (j job) room() int64 { return min(int64(len(j.data)), queueBytes) }

// job is a chunk to be written.
type job struct {
	file *File
	i    int
	data []byte
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
	d := &Dir{path: images, limit: o.Limit, log: o.Log, room: semaphore.NewWeighted(queueBytes), wrap: wrap, pending: map[content][]byte{}}
	d.queue, d.wake, d.stop = make(chan job, 4096), make(chan struct{}, 1), make(chan struct{})
	d.flushed = sync.NewCond(&d.mu)
	if d.limit == 0 {
		d.limit = d.Used() + freeBytes(images)/2
	}
	d.donors = findDonors(images)
	d.forgetEvicted()
	d.ended.Go(d.write)
	d.ended.Go(d.keep)
	return d, nil
}

// Close flushes what was written, and closes all images: what is in them need not be proven again. Nobody may
// use them afterwards.
func (d *Dir) Close() error {
	d.mu.Lock()
	files := d.open
	closed := d.closed
	d.closed = true
	d.mu.Unlock()
	if closed {
		return nil
	}
	close(d.stop)
	d.ended.Wait()
	var errs []error
	for _, f := range files {
		errs = append(errs, f.close())
	}
	for _, n := range d.donors {
		n.file.Close()
	}
	return errors.Join(errs...)
}

// write writes what is offered, until the directory is closed and nothing is left.
func (d *Dir) write() {
	for {
		select {
		case j := <-d.queue:
			d.put(j)
		case <-d.stop:
			d.drain()
			return
		}
	}
}

func (d *Dir) drain() {
	for {
		select {
		case j := <-d.queue:
			d.put(j)
		default:
			return
		}
	}
}

func (d *Dir) put(j job) {
	defer d.forget(j)
	if !d.working() || !j.file.store(j.i, j.data) {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unsynced += int64(len(j.data))
	if d.unsynced >= d.batch() {
		d.rouse()
	}
	for d.unsynced >= max(unsyncedMax, d.batch()) && !d.closed {
		d.flushed.Wait()
	}
}

// forget takes a job off that was done, or given up.
func (d *Dir) forget(j job) {
	d.mu.Lock()
	delete(d.pending, j.content())
	d.mu.Unlock()
	j.file.queued.Remove(j.i)
	d.room.Release(j.room())
}

// batch is how much is written before it is flushed; a small limit must not be overrun by it.
func (d *Dir) batch() int64 {
	if d.limit > 0 {
		return max(min(batchBytes, d.limit/8), 1)
	}
	return batchBytes
}

// rouse has the keeper work now.
func (d *Dir) rouse() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// keep flushes and makes room, in the background, until the directory is closed.
func (d *Dir) keep() {
	tick := time.NewTicker(batchTime)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-d.wake:
		case <-tick.C:
		case <-d.stop:
			d.mu.Lock()
			d.flushed.Broadcast()
			d.mu.Unlock()
			return
		}
		if d.sync() || n%lookEvery == 0 {
			d.evict()
		}
	}
}

// sync flushes what was written to all images, and then says so in their maps. Reads go on meanwhile. It
// returns whether there was anything.
func (d *Dir) sync() bool {
	d.turn.Lock()
	defer d.turn.Unlock()
	d.mu.Lock()
	files, covered := append([]*File(nil), d.open...), d.unsynced
	d.mu.Unlock()
	for _, f := range files {
		f.sync()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unsynced -= covered
	d.flushed.Broadcast()
	return covered > 0
}

// working says whether the disk may be written: it has not failed just now.
func (d *Dir) working() bool { return time.Now().UnixNano() >= d.paused.Load() }

// failed takes note of an error of the disk, says so when it is the first, and has it left alone for a while.
func (d *Dir) failed(what string, err error) {
	d.paused.Store(time.Now().Add(retryTime).UnixNano())
	if !d.failing.Swap(true) {
		d.log.Warn("the image cache is not written for now; reads go on without it", "doing", what, "error", err)
	}
}

// worked takes note that something came to the disk.
func (d *Dir) worked() {
	if d.working() && d.failing.Swap(false) {
		d.log.Info("the image cache is written again")
	}
}

// Dropped is how many chunks were not kept because the disk was too slow or failed.
func (d *Dir) Dropped() int64 { return d.dropped.Load() }

// Copy fills dst with a chunk that is on disk as part of any image here, and returns whether there is one. What
// it returns is proven.
func (d *Dir) Copy(a blob.Algorithm, digest blob.Digest, dst []byte) bool {
	d.mu.Lock()
	files, donors, data := d.open, d.donors, d.pending[content{a, digest, int64(len(dst))}]
	d.mu.Unlock()
	if data != nil {
		copy(dst, data)
		return true
	}
	for _, f := range files {
		if f.copy(a, digest, dst) {
			return true
		}
	}
	for _, n := range donors {
		if n.copy(a, digest, dst) {
			return true
		}
	}
	return false
}

// MayCopy says whether Copy is worth the attempt: it answers from memory.
func (d *Dir) MayCopy(a blob.Algorithm, digest blob.Digest, size int64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pending[content{a, digest, size}] != nil {
		return true
	}
	for _, f := range d.open {
		if f.find(a, digest, size) >= 0 {
			return true
		}
	}
	for _, n := range d.donors {
		if n.find(a, digest, size) >= 0 {
			return true
		}
	}
	return false
}

// enqueue has a chunk written later, if there is room for it now.
func (d *Dir) enqueue(j job) bool {
	if !d.working() || !d.room.TryAcquire(j.room()) {
		d.dropped.Add(1)
		return false
	}
	return d.send(j)
}

// enqueueWait is enqueue that waits for room.
func (d *Dir) enqueueWait(ctx context.Context, j job) bool {
	if !d.working() || d.room.Acquire(ctx, j.room()) != nil {
		return false
	}
	return d.send(j)
}

func (d *Dir) send(j job) bool {
	d.mu.Lock()
	d.pending[j.content()] = j.data
	d.mu.Unlock()
	j.file.queued.Add(j.i)
	select {
	case d.queue <- j:
		return true
	default:
		d.forget(j)
		d.dropped.Add(1)
		return false
	}
}
