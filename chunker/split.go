package chunker

import (
	"context"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Chunk is a run of image bytes between two cuts.
type Chunk struct {
	Offset int64
	Size   int64
	Data   []byte // nil for a chunk in a hole, which is all zero
}

// Batch is a run of consecutive chunks of an image. The Data of its chunks is valid only during the
// call of a stage.
type Batch struct {
	Worker int // number of the worker, from 0; selects state that workers do not share
	First  int // number of the first chunk in the image
	Chunks []Chunk
}

// Stages process the chunks. Each batch passes Work, Order and Finish in this sequence, on one
// goroutine. Work and Finish run for several batches concurrently, Order for one batch at a time in
// image order. A nil stage is skipped. An error ends the Split.
type Stages struct {
	Work, Order, Finish func(context.Context, *Batch) error
}

// Split cuts an image with p and passes the chunks through the stages, with at most workers batches at
// once, and at least one. The cuts are casync's for any number of workers. Each worker takes about
// SegmentSize and one chunk of the maximum size in memory, or two such chunks if that is more. Split
// returns the image's size in bytes. Its error is nil only if every stage has processed every chunk.
func Split(ctx context.Context, src *Source, p Params, workers int, stages Stages) (int64, error) {
	return splitSegments(ctx, src, p, workers, SegmentSize, stages)
}

func splitSegments(ctx context.Context, src *Source, p Params, workers, segment int, stages Stages) (int64, error) {
	if err := p.Validate(); err != nil {
		return 0, err
	}
	group, groupCtx := errgroup.WithContext(ctx)
	q := &queue{src: src, cut: make(chan cutState, 1), order: make(chan struct{}, 1)}
	q.cut <- cutState{tail: make([]byte, 0, p.Max)}
	q.order <- struct{}{}
	for w := range max(workers, 1) {
		group.Go(func() error { return newWorker(w, q, p, segment, stages).run(groupCtx) })
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	return src.next, ctx.Err()
}

// SegmentSize is the size of a worker's reads in bytes.
const SegmentSize = 4 << 20

// cutState passes from segment to segment in image order. Its holder may cut, and may run Order after
// that.
type cutState struct {
	start int64  // start of the chunk that is not complete yet
	count int    // chunks cut so far
	tail  []byte // the bytes from start on; the memory passes along
}

// queue orders the segments. Each ticket has the channels on which it waits for its turn and wakes the
// next one.
type queue struct {
	mu    sync.Mutex // guards the fields below
	src   *Source
	cut   chan cutState // of the next segment
	order chan struct{} // of the next segment
}

// ticket is a segment with its place in the queue.
type ticket struct {
	segment
	cut, nextCut     chan cutState
	order, nextOrder chan struct{}
}

// nextTicket returns the next segment and its place in the queue.
func (q *queue) nextTicket(before, data []byte, maxHole int64) (ticket, bool, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	seg, ok, err := q.src.nextSegment(before, data, maxHole)
	if !ok {
		return ticket{}, false, err
	}
	t := ticket{segment: seg, cut: q.cut, order: q.order, nextCut: make(chan cutState, 1), nextOrder: make(chan struct{}, 1)}
	q.cut, q.order = t.nextCut, t.nextOrder
	return t, true, nil
}

// receive receives from c, or returns the error of ctx.
func receive[T any](ctx context.Context, c chan T) (T, error) {
	select {
	case v := <-c:
		return v, nil
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

type worker struct {
	number     int
	queue      *queue
	params     Params
	finder     *finder // nil for cuts at fixed size
	stages     Stages
	candidates candidates
	chunks     []Chunk
	// buf has room for the chunk that began in an earlier segment, and then the segment itself.
	buf  []byte
	room int
}

func newWorker(number int, q *queue, p Params, segment int, stages Stages) *worker {
	room := int(max(p.Max, window))
	w := &worker{number: number, queue: q, params: p, stages: stages, room: room}
	w.buf = make([]byte, room+max(segment, room))
	if !p.isFixed() {
		w.finder = newFinder(p)
	}
	return w
}

func (w *worker) run(ctx context.Context) error {
	maxHole := int64(0)
	if w.finder == nil || !w.finder.zeroCandidates {
		maxHole = maxHoleChunks * w.params.Max
	}
	before, data := w.buf[w.room-window:w.room], w.buf[w.room:]
	for ctx.Err() == nil {
		t, ok, err := w.queue.nextTicket(before, data, maxHole)
		if !ok {
			return err
		}
		if err := w.queue.src.readSegment(t.segment, before, w.segmentBytes(t.segment)); err != nil {
			return err
		}
		if err := w.processSegment(ctx, t); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// segmentBytes returns the part of the buffer for the segment's bytes. A hole needs only one chunk of
// the maximum size: the chunk that began before it ends there, and all bytes behind that are zero.
func (w *worker) segmentBytes(seg segment) []byte {
	size := seg.size
	if seg.hole {
		size = min(size, int64(w.room))
	}
	return w.buf[w.room:][:size]
}

func (w *worker) processSegment(ctx context.Context, t ticket) error {
	if w.finder != nil {
		present := len(w.segmentBytes(t.segment))
		before := int(min(t.offset, window)) // needed for the first windows
		w.candidates = w.candidates.reset(present)
		w.finder.findCandidates(w.candidates, w.buf[w.room-before:w.room+present], before)
	}
	b, err := receive(ctx, t.cut)
	if err != nil {
		return err
	}
	batch := Batch{Worker: w.number, First: b.count}
	next := w.cutSegment(t.segment, b)
	t.nextCut <- next
	batch.Chunks = w.chunks
	return w.runStages(ctx, t, &batch)
}

// runStages passes a batch through the stages.
func (w *worker) runStages(ctx context.Context, t ticket, batch *Batch) error {
	if err := runStage(ctx, w.stages.Work, batch); err != nil {
		return err
	}
	if _, err := receive(ctx, t.order); err != nil {
		return err
	}
	if err := runStage(ctx, w.stages.Order, batch); err != nil {
		return err
	}
	t.nextOrder <- struct{}{}
	return runStage(ctx, w.stages.Finish, batch)
}

func runStage(ctx context.Context, do func(context.Context, *Batch) error, batch *Batch) error {
	if do == nil || len(batch.Chunks) == 0 {
		return nil
	}
	return do(ctx, batch)
}

// cutSegment selects the cuts in a segment and lists the chunks that end at them. The rest becomes the
// tail.
func (w *worker) cutSegment(seg segment, b cutState) cutState {
	w.chunks = w.chunks[:0]
	copy(w.buf[w.room-len(b.tail):], b.tail)
	for {
		end := w.nextCut(seg, b.start)
		if end < 0 {
			break
		}
		w.chunks = append(w.chunks, Chunk{Offset: b.start, Size: end - b.start, Data: w.imageBytes(seg, b.start, end)})
		b.start = end
	}
	b.count += len(w.chunks)
	b.tail = w.saveTail(b.tail, seg, b.start)
	return b
}

// nextCut returns the end of the chunk that begins at start, or -1 if later segments decide it.
func (w *worker) nextCut(seg segment, start int64) int64 {
	end := seg.offset + seg.size
	if w.finder != nil && end-start >= w.params.firstCut() {
		lo := max(start+w.params.firstCut()-seg.offset, 1)
		hi := min(start+w.params.Max-seg.offset, seg.size)
		if c := w.candidates.firstIn(int(lo), int(hi)); c >= 0 {
			return seg.offset + int64(c)
		}
	}
	switch {
	case end-start >= w.params.Max:
		return start + w.params.Max
	case seg.last && end > start:
		return end
	}
	return -1
}

// imageBytes returns the image bytes [start, end), or nil inside a hole.
func (w *worker) imageBytes(seg segment, start, end int64) []byte {
	if seg.hole && start >= seg.offset {
		return nil
	}
	return w.buf[int64(w.room)+start-seg.offset : int64(w.room)+end-seg.offset]
}

// saveTail copies the image from start to the end of the segment into tail's memory, for the next
// segment.
func (w *worker) saveTail(tail []byte, seg segment, start int64) []byte {
	end := seg.offset + seg.size
	tail = tail[:end-start]
	if data := w.imageBytes(seg, start, end); data != nil {
		copy(tail, data)
	} else {
		clear(tail)
	}
	return tail
}
