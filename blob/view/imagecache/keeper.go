package imagecache

import "time"

const (
	batchBytes   = 16 << 20    // bytes written between two flushes
	unflushedMax = 40 << 20    // limit of the written and unflushed bytes; a crash loses them and the queue
	batchTime    = time.Second // a flush starts at least this often, unless one is running
	evictEvery   = 16          // in batchTime; between two checks of the limit while this process writes nothing
)

// keeper writes the queued chunks, starts flushes, and evicts. It alone changes the files of a Dir, in one goroutine.
// Only a flush runs beside it.
type keeper struct {
	dir            *Dir
	unflushedBytes int64         // bytes written since the start of the last flush that has ended
	flushingBytes  int64         // the part of unflushedBytes that the running flush covers
	flushing       chan struct{} // closed at the end of the running flush; nil if none is running
	ticks          int
}

// runLoop runs until the Dir's tasks are closed. Then it writes the queued chunks, and leaves them unflushed.
func (k *keeper) runLoop() {
	tick := time.NewTicker(batchTime)
	defer tick.Stop()
	for {
		jobs, tasks := k.dir.queue.jobs, k.dir.tasks
		if k.unflushedBytes >= max(unflushedMax, k.batchSize()) {
			jobs = nil
		}
		if k.flushing != nil {
			tasks = nil
		}
		select {
		case j := <-jobs:
			k.writeJob(j)
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
				k.writeJob(<-k.dir.queue.jobs)
			default:
				return
			}
		}
	}
}

func (k *keeper) writeJob(j job) {
	switch {
	case !k.dir.health.isHealthy():
		k.dir.queue.dropped.Add(1)
	case j.file.writeChunk(j.chunk, j.data):
		k.unflushedBytes += int64(len(j.data))
	}
	k.dir.queue.removeJob(j)
	if k.unflushedBytes >= k.batchSize() {
		k.beginFlush()
	}
}

// batchSize returns how many bytes are written between two flushes. A small limit gives a small batch, so the batch
// does not exceed the limit by much.
func (k *keeper) batchSize() int64 {
	if k.dir.limit > 0 {
		return max(min(batchBytes, k.dir.limit/8), 1)
	}
	return batchBytes
}

// beginFlush starts a flush of all files in the background, unless one is running. Reads and writes continue.
func (k *keeper) beginFlush() {
	if k.flushing != nil {
		return
	}
	files, done := k.dir.listFiles(), make(chan struct{})
	k.flushingBytes, k.flushing = k.unflushedBytes, done
	go func() {
		defer close(done)
		for _, f := range files {
			f.flushChunks()
		}
	}()
}

// endFlush renames files that are complete now or have lost chunks. It evicts if the flush covered new bytes, or if a
// check of the limit is due.
func (k *keeper) endFlush() {
	k.flushing = nil
	for _, f := range k.dir.listFiles() {
		f.nameComplete()
	}
	k.unflushedBytes -= k.flushingBytes
	if k.flushingBytes > 0 || k.ticks%evictEvery == 1 {
		k.evictToLimit()
	}
}
