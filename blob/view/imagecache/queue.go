package imagecache

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

const (
	queueBytes = 20 << 20         // limit of the bytes in the queue
	queueJobs  = 4096             // limit of the chunks in the queue
	retryTime  = 30 * time.Second // time after a failure until the disk is tried again
)

// job is a chunk to write.
type job struct {
	file  *File
	chunk int
	data  []byte
}

func (j job) content() content {
	x := j.file.index
	return content{x.Algorithm(), x.At(j.chunk).Digest, int64(len(j.data))}
}

// weight returns the part of queueBytes that a job takes. A chunk larger than queueBytes takes all of it.
func (j job) weight() int64 { return min(int64(len(j.data)), queueBytes) }

// queue holds the chunks to write. Safe for concurrent use.
type queue struct {
	jobs    chan job
	room    *semaphore.Weighted
	dropped atomic.Int64 // chunks that were not written

	mu   sync.Mutex         // guards the field below
	data map[content][]byte // bytes of the queued chunks
}

// addJob queues a job, unless its chunk need not be written, the disk is failing, or acquire returns false for its
// weight. It reports whether it has queued the job.
func (q *queue) addJob(j job, acquire func(room int64) bool) bool {
	if !j.file.chunks.markQueued(j.chunk) {
		return false
	}
	if !j.file.dir.health.isHealthy() || !acquire(j.weight()) {
		q.dropped.Add(1)
		j.file.chunks.clearQueued(j.chunk)
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
		q.removeJob(j)
		return false
	}
}

// removeJob releases the weight of a job that was written or dropped.
func (q *queue) removeJob(j job) {
	q.mu.Lock()
	delete(q.data, j.content())
	q.mu.Unlock()
	j.file.chunks.clearQueued(j.chunk)
	q.room.Release(j.weight())
}

// findData returns the bytes of a queued chunk, or nil.
func (q *queue) findData(c content) []byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.data[c]
}

// health tracks whether writes to the disk succeed.
type health struct {
	log    *slog.Logger
	paused atomic.Pointer[time.Time] // no writes before this time; nil after a successful flush
}

// isHealthy reports whether the disk may be written: it has not failed within retryTime.
func (h *health) isHealthy() bool {
	until := h.paused.Load()
	return until == nil || !time.Now().Before(*until)
}

// noteFailure records an error of the disk, and pauses writes for retryTime. It logs the first error since the last
// successful flush.
func (h *health) noteFailure(doing string, err error) {
	until := time.Now().Add(retryTime)
	if h.paused.Swap(&until) == nil {
		h.log.Warn("the image cache is not written for now; reads go on without it", "doing", doing, "error", err)
	}
}

// noteSuccess records a successful flush, and logs the first one after a failure.
func (h *health) noteSuccess() {
	if until := h.paused.Load(); until != nil && h.isHealthy() && h.paused.CompareAndSwap(until, nil) {
		h.log.Info("the image cache is written again")
	}
}
