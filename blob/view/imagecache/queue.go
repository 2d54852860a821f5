package imagecache

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

const (
	queueBytes = 20 << 20 // wait to be written, at most
	queueJobs  = 4096
	retryTime  = 30 * time.Second // after which a disk that failed is tried again
)

// job is a chunk to be written.
type job struct {
	file  *File
	chunk int
	data  []byte
}

func (j job) content() content {
	x := j.file.index
	return content{x.Algorithm(), x.At(j.chunk).Digest, int64(len(j.data))}
}

// room is how much of queueBytes a job takes: a chunk that is larger than all of it waits alone.
func (j job) room() int64 { return min(int64(len(j.data)), queueBytes) }

// queue is what waits to be written. Safe for concurrent use.
type queue struct {
	jobs    chan job
	room    *semaphore.Weighted
	dropped atomic.Int64 // chunks that were not written

	mu   sync.Mutex         // guards what follows
	data map[content][]byte // of the jobs
}

// add queues a job, unless its chunk is not wanted, the disk fails, or acquire gets no room for it. It reports whether
// the job is queued.
func (q *queue) add(j job, acquire func(room int64) bool) bool {
	if !j.file.chunks.queue(j.chunk) {
		return false
	}
	if !j.file.dir.health.ok() || !acquire(j.room()) {
		q.dropped.Add(1)
		j.file.chunks.unqueue(j.chunk)
		return false
	}
	q.mu.Lock()
	q.data[j.content()] = j.data
	q.mu.Unlock()
	select {
	case q.jobs <- j:
		return true
	default:
		q.dropped.Add(1)
		q.remove(j)
		return false
	}
}

// remove gives the room of a job back that was done, or given up.
func (q *queue) remove(j job) {
	q.mu.Lock()
	delete(q.data, j.content())
	q.mu.Unlock()
	j.file.chunks.unqueue(j.chunk)
	q.room.Release(j.room())
}

// find returns the bytes of a chunk that waits to be written, or nil.
func (q *queue) find(c content) []byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.data[c]
}

// health is whether the disk works.
type health struct {
	log    *slog.Logger
	paused atomic.Int64 // until then, in ns since 1970, nothing is written; 0 when the last write or flush succeeded
}

// ok reports whether the disk may be written: it has not failed just now.
func (h *health) ok() bool { return time.Now().UnixNano() >= h.paused.Load() }

// failed takes note of an error of the disk, logs it if it is the first, and stops writing for a while.
func (h *health) failed(doing string, err error) {
	if h.paused.Swap(time.Now().Add(retryTime).UnixNano()) == 0 {
		h.log.Warn("the image cache is not written for now; reads go on without it", "doing", doing, "error", err)
	}
}

// worked takes note that something came to the disk.
func (h *health) worked() {
	if until := h.paused.Load(); until != 0 && h.ok() && h.paused.CompareAndSwap(until, 0) {
		h.log.Info("the image cache is written again")
	}
}
