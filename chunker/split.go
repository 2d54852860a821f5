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
	Data   []byte // nil for a chunk inside a hole: all zero
}

// Batch is some consecutive chunks of an image. Its chunks' Data is only valid during the stage's call.
type Batch struct {
	Worker int // who works on it, from 0; for state that workers do not share
	First  int // number of the first chunk in the image
	Chunks []Chunk
}

// Stages are what is done with the chunks. Each batch passes Work, Order and Finish in this sequence, on one
// goroutine. Work and Finish run for several batches at once, Order for one batch at a time in image
// order. A nil stage is passed over; an error ends the whole job.
type Stages struct {
	Work, Order, Finish func(context.Context, *Batch) error
}

// Split cuts an image with p and leads the chunks through the stages, with at most workers (at least
// one) batches at once. The cuts are casync's, whatever the number of workers. Memory is about
// SegmentSize and one largest chunk a worker, or two largest chunks if that is more. It returns the image's size in bytes, and nil only when
// every stage was done for every chunk.
func Split(ctx context.Context, src *Source, p Params, workers int, stages Stages) (int64, error) {
	return split(ctx, src, p, workers, SegmentSize, stages)
}

func split(ctx context.Context, src *Source, p Params, workers, segment int, stages Stages) (int64, error) {
	if err := p.Validate(); err != nil {
		return 0, err
	}
	group, groupCtx := errgroup.WithContext(ctx)
	line := newLine(src, p)
	for w := range max(workers, 1) {
		group.Go(func() error { return newWorker(w, line, p, segment, stages).run(groupCtx) })
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	return src.next, ctx.Err()
}

// SegmentSize is how much of an image a worker reads at once, in bytes.
const SegmentSize = 4 << 20

// baton passes from segment to segment in image order; who holds it may cut, and after that may run Order.
type baton struct {
	start int64  // where the chunk begins that is not cut yet
	count int    // chunks cut so far
	tail  []byte // the bytes from start on; its memory passes along
}

// line is the order of the segments: each knows where to wait for its turn, and whom to wake.
type line struct {
	mu    sync.Mutex // guards what follows
	src   *Source
	cut   chan baton    // of the next segment
	order chan struct{} // of the next segment
}

type ticket struct {
	segment
	cut, nextCut     chan baton
	order, nextOrder chan struct{}
}

func newLine(src *Source, p Params) *line {
	l := &line{src: src, cut: make(chan baton, 1), order: make(chan struct{}, 1)}
	l.cut <- baton{tail: make([]byte, 0, p.Max)}
	l.order <- struct{}{}
	return l
}

// take draws the next segment and its place in the line.
func (l *line) take(before, data []byte, maxHole int64) (ticket, bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	seg, ok, err := l.src.take(before, data, maxHole)
	if !ok {
		return ticket{}, false, err
	}
	t := ticket{segment: seg, cut: l.cut, order: l.order, nextCut: make(chan baton, 1), nextOrder: make(chan struct{}, 1)}
	l.cut, l.order = t.nextCut, t.nextOrder
	return t, true, nil
}

// wait receives from c, unless the job ends first.
func wait[T any](ctx context.Context, c chan T) (T, error) {
	select {
	case v := <-c:
		return v, nil
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

type worker struct {
	number int
	line   *line
	params Params
	finder *Finder // nil when cuts are at fixed size
	stages Stages
	set    candidates
	chunks []Chunk
	// buf is room for the chunk that began in an earlier segment, then the segment itself.
	buf  []byte
	room int
}

func newWorker(number int, l *line, p Params, segment int, stages Stages) *worker {
	room := int(max(p.Max, window))
	w := &worker{number: number, line: l, params: p, stages: stages, room: room}
	w.buf = make([]byte, room+max(segment, room))
	if !p.fixed() {
		w.finder = newFinder(p)
	}
	return w
}

func (w *worker) run(ctx context.Context) error {
	maxHole := int64(0)
	if w.finder == nil || !w.finder.zeros {
		maxHole = holeChunks * w.params.Max
	}
	before, data := w.buf[w.room-window:w.room], w.buf[w.room:]
	for ctx.Err() == nil {
		t, ok, err := w.line.take(before, data, maxHole)
		if !ok {
			return err
		}
		if err := w.line.src.fill(t.segment, before, w.present(t.segment)); err != nil {
			return err
		}
		if err := w.process(ctx, t); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// present is the part of the buffer that holds the segment's bytes. Of a hole one largest chunk is
// enough: who began before it ends within, and all behind that is zero.
func (w *worker) present(seg segment) []byte {
	size := seg.size
	if seg.hole {
		size = min(size, int64(w.room))
	}
	return w.buf[w.room:][:size]
}

func (w *worker) process(ctx context.Context, t ticket) error {
	if w.finder != nil {
		present := len(w.present(t.segment))
		w.set = w.set.reset(present)
		w.finder.find(w.set, w.scanned(t.segment, present), w.preceding(t.segment))
	}
	b, err := wait(ctx, t.cut)
	if err != nil {
		return err
	}
	batch := Batch{Worker: w.number, First: b.count}
	next := w.cut(t.segment, b)
	t.nextCut <- next
	batch.Chunks = w.chunks
	return w.lead(ctx, t, &batch)
}

// preceding is how many bytes before the segment are in the buffer for its first windows.
func (w *worker) preceding(seg segment) int { return int(min(seg.offset, window)) }

func (w *worker) scanned(seg segment, present int) []byte {
	return w.buf[w.room-w.preceding(seg) : w.room+present]
}

// lead takes a batch through the stages.
func (w *worker) lead(ctx context.Context, t ticket, batch *Batch) error {
	if err := stage(ctx, w.stages.Work, batch); err != nil {
		return err
	}
	if _, err := wait(ctx, t.order); err != nil {
		return err
	}
	if err := stage(ctx, w.stages.Order, batch); err != nil {
		return err
	}
	t.nextOrder <- struct{}{}
	return stage(ctx, w.stages.Finish, batch)
}

func stage(ctx context.Context, do func(context.Context, *Batch) error, batch *Batch) error {
	if do == nil || len(batch.Chunks) == 0 {
		return nil
	}
	return do(ctx, batch)
}

// cut selects the cuts in a segment and lists the chunks they end; what is left becomes the tail.
func (w *worker) cut(seg segment, b baton) baton {
	w.chunks = w.chunks[:0]
	copy(w.buf[w.room-len(b.tail):], b.tail)
	for {
		end := w.nextCut(seg, b.start)
		if end < 0 {
			break
		}
		w.chunks = append(w.chunks, Chunk{Offset: b.start, Size: end - b.start, Data: w.bytes(seg, b.start, end)})
		b.start = end
	}
	b.count += len(w.chunks)
	b.tail = w.keep(b.tail, seg, b.start)
	return b
}

// nextCut is where the chunk that begins at start ends, or -1 when the segments behind decide it.
func (w *worker) nextCut(seg segment, start int64) int64 {
	end := seg.offset + seg.size
	if w.finder != nil && end-start >= w.params.first() {
		lo := max(start+w.params.first()-seg.offset, 1)
		hi := min(start+w.params.Max-seg.offset, seg.size)
		if c := w.set.first(int(lo), int(hi)); c >= 0 {
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

// bytes is the image from start to end, or nil inside a hole.
func (w *worker) bytes(seg segment, start, end int64) []byte {
	if seg.hole && start >= seg.offset {
		return nil
	}
	return w.buf[int64(w.room)+start-seg.offset : int64(w.room)+end-seg.offset]
}

// keep saves the image from start to the segment's end, for the next segment, in tail's memory.
func (w *worker) keep(tail []byte, seg segment, start int64) []byte {
	end := seg.offset + seg.size
	tail = tail[:end-start]
	if data := w.bytes(seg, start, end); data != nil {
		copy(tail, data)
	} else {
		clear(tail)
	}
	return tail
}
