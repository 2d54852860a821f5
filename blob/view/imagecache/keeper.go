package imagecache

import "time"

const (
	batchBytes   = 16 << 20 // are written before they are flushed, if not a batchTime has gone by
	unflushedMax = 40 << 20 // are written and not flushed, at most: what a crash may cost, with what is queued
	batchTime    = time.Second
	evictEvery   = 16 // batch times: how often the limit is looked at when nothing is written here
)

// keeper writes what is queued, has it flushed, and evicts. It alone changes the files of a Dir, in one goroutine; only
// a flush goes on beside that.
type keeper struct {
	dir       *Dir
	unflushed int64         // bytes written since the last flush that has ended began
	covered   int64         // of them, by the flush that is under way
	flushing  chan struct{} // closed when that has ended; nil when none is under way
	ticks     int
}

// run works until the Dir's tasks are closed. Then it writes what is queued, and leaves it unflushed.
func (k *keeper) run() {
	tick := time.NewTicker(batchTime)
	defer tick.Stop()
	for {
		jobs, tasks := k.dir.queue.jobs, k.dir.tasks
		if k.unflushed >= max(unflushedMax, k.batch()) {
			jobs = nil
		}
		if k.flushing != nil {
			tasks = nil
		}
		select {
		case j := <-jobs:
			k.write(j)
		case <-k.flushing:
			k.endFlush()
		case <-tick.C:
			k.ticks++
			k.beginFlush()
		case task, open := <-tasks:
			switch {
			case open:
				task(k)
			case len(k.dir.queue.jobs) > 0:
				k.write(<-k.dir.queue.jobs)
			default:
				return
			}
		}
	}
}

func (k *keeper) write(j job) {
	switch {
	case !k.dir.health.ok():
		k.dir.queue.dropped.Add(1)
	case j.file.write(j.chunk, j.data):
		k.unflushed += int64(len(j.data))
	}
	k.dir.queue.remove(j)
	if k.unflushed >= k.batch() {
		k.beginFlush()
	}
}

// batch is how much is written before it is flushed; a small limit must not be overrun by it.
func (k *keeper) batch() int64 {
	if k.dir.limit > 0 {
		return max(min(batchBytes, k.dir.limit/8), 1)
	}
	return batchBytes
}

// beginFlush has all files flushed in the background, unless that is under way. Reads and writes go on.
func (k *keeper) beginFlush() {
	if k.flushing != nil {
		return
	}
	files, done := k.dir.openFiles(), make(chan struct{})
	k.covered, k.flushing = k.unflushed, done
	go func() {
		defer close(done)
		for _, f := range files {
			f.flush()
		}
	}()
}

// endFlush names the files that are complete, and evicts if the flush has added to them.
func (k *keeper) endFlush() {
	k.flushing = nil
	for _, f := range k.dir.openFiles() {
		f.nameComplete()
	}
	k.unflushed -= k.covered
	if k.covered > 0 || k.ticks%evictEvery == 1 {
		k.evict()
	}
}
