package assemble

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"

	"cairn/internal/bitset"
	"cairn/seed"
	"cairn/store"
)

// Sink receives an image, or a part of it, in order.
type Sink struct {
	io.Writer
	Offset, Size int64 // the part, in bytes
}

// ZeroWriter is a writer with a cheaper way to write zeros.
type ZeroWriter interface{ WriteZeros(n int64) error }

// Stream writes a part of the plan's image to a writer that cannot be read or positioned. It writes
// each byte once, in order, and only after its chunk was hashed. Several segments are assembled
// concurrently ahead of the writer. A failure ends the stream where its segment begins; all bytes
// before that are written. A quarter of Options.Memory caches chunks that repeat; those that do not fit
// are fetched again.
//
// With Options.ImageSum, which needs a Sink for the whole image, the last segment is written only if the
// sum of the image is right.
//
// Stream ignores the options New, Own, Verify and Changing. Inspect is not called for a part that
// begins after the first chunk.
func Stream(ctx context.Context, p *seed.Plan, from store.Getter, to Sink, o Options) (Stats, error) {
	if end := p.Index.Size(); to.Offset < 0 || to.Size < 0 || to.Offset > end-to.Size {
		return Stats{}, fmt.Errorf("%d bytes at %d are not within the image's %d", to.Size, to.Offset, end)
	}
	j := newStream(p, from, to, o)
	err := j.forEachSegment(ctx, &j.order, func(ctx context.Context, s *segment) error {
		s.gatherLocal()
		gathered := s.fetchMissing(ctx)
		if err := s.turn.awaitPrevious(ctx); err != nil {
			return err
		}
		if gathered == nil && s.lo == 0 {
			gathered = j.inspectHead(s)
		}
		if gathered != nil {
			return gathered
		}
		if err := s.writeOut(to); err != nil {
			return err
		}
		s.turn.startNext()
		return nil
	})
	if err == nil && p.Index.Len() == 0 && o.ImageSum != nil {
		err = o.ImageSum.compare(j.streamSum)
	}
	if err != nil {
		return j.stats(), err
	}
	return j.stats(), ctx.Err()
}

// newStream returns the job of a stream.
func newStream(p *seed.Plan, from store.Getter, to Sink, o Options) *job {
	o.Stream, o.New, o.Own = true, true, 0
	j := newJob(p, from, nil, o)
	lo, hi := 0, 0
	if to.Size > 0 {
		lo, hi = p.Index.Find(to.Offset), p.Index.Find(to.Offset+to.Size-1)+1
	}
	j.order.runs = []run{{lo, hi}}
	j.order.useTurns()
	if lo > 0 || hi < p.Index.Len() {
		j.streamRepeats = planRepeats(p, lo, hi, j.streamRepeats.limit)
	}
	return j
}

// writeOut writes the segment. All earlier segments are written.
func (s *segment) writeOut(to Sink) error {
	for i := s.lo; i < s.hi; i++ {
		s.job.streamRepeats.keepOrCopy(s, i)
	}
	if err := s.hashSegment(); err != nil {
		return err
	}
	zeros, sparse := to.Writer.(ZeroWriter)
	for i := s.lo; i < s.hi; {
		isZero, end := sparse && *s.state(i) == zero, i+1
		for end < s.hi && isZero == (sparse && *s.state(end) == zero) {
			end++
		}
		lo, hi := max(s.chunk(i).Offset, to.Offset), min(s.chunk(end-1).End(), to.Offset+to.Size)
		var err error
		if isZero {
			err = zeros.WriteZeros(hi - lo)
		} else {
			s.clearZeros(i, end)
			_, err = to.Write(s.buf[lo-s.start : hi-s.start])
		}
		if err != nil {
			return err
		}
		s.job.counters.written.Add(hi - lo)
		i = end
	}
	return nil
}

// clearZeros zeroes the buffers of the zero chunks among [lo, hi).
func (s *segment) clearZeros(lo, hi int) {
	for i := range s.chunksIn(zero) {
		if lo <= i && i < hi {
			clear(s.bytesOf(s.buf, s.chunk(i)))
		}
	}
}

// repeats is the plan for the chunks that a stream keeps in memory until they repeat. Those that do not
// fit are fetched again.
type repeats struct {
	plan   *seed.Plan
	limit  int64          // bytes
	keeps  *bitset.Set    // the chunks to keep until they repeat
	copies *bitset.Set    // the chunks to copy from a kept one
	kept   map[int][]byte // by the number of the first equal chunk of the image; used only by the segment whose turn it is
}

// interval is the time during which chunk at is kept, until it repeats as chunk next.
type interval struct{ at, next int }

// planRepeats decides which of the chunks [lo, hi) are kept, never more than limit bytes at once.
// Without room it evicts the chunk whose repeat is furthest away. A preview decides the same.
func planRepeats(p *seed.Plan, lo, hi int, limit int64) *repeats {
	n := p.Index.Len()
	r := &repeats{plan: p, limit: limit, keeps: bitset.New(n), copies: bitset.New(n), kept: map[int][]byte{}}
	next := nextCopies(p, lo, hi)
	var staying []interval // sorted by next
	for i := lo; i < hi && len(next) > 0; i++ {
		size := p.Index.At(i).Size
		if len(staying) > 0 && staying[0].next == i {
			r.copies.Add(i)
			staying, limit = staying[1:], limit+size
		}
		if next[i-lo] == 0 {
			continue
		}
		it := interval{i, int(next[i-lo])}
		at, _ := slices.BinarySearchFunc(staying, it, func(a, b interval) int { return a.next - b.next })
		staying = slices.Insert(staying, at, it)
		r.keeps.Add(i)
		for limit -= size; limit < 0; {
			last := staying[len(staying)-1]
			staying, limit = staying[:len(staying)-1], limit+p.Index.At(last.at).Size
			r.keeps.Remove(last.at)
		}
	}
	return r
}

// nextCopies returns for each of the chunks [lo, hi) the number of its next repeat, or 0. It returns
// nil if no chunk repeats.
func nextCopies(p *seed.Plan, lo, hi int) []uint32 {
	var next []uint32
	last := map[int]int{} // by the number of the first equal chunk of the image
	for i := hi - 1; i >= lo; i-- {
		kind := p.At(i).Kind
		if kind != seed.Copy && kind != seed.Fetch && kind != seed.Delta {
			continue
		}
		id := p.First(i)
		if later := last[id]; later > 0 {
			next[i-lo] = uint32(later)
		}
		if kind == seed.Copy {
			if next == nil {
				next = make([]uint32, hi-lo)
			}
			last[id] = i
		}
	}
	return next
}

// keepOrCopy copies chunk i from a kept one, or keeps it, when its segment is written.
func (r *repeats) keepOrCopy(s *segment, i int) {
	keep := r.keeps.Has(i)
	if *s.state(i) != deferred && !keep {
		return
	}
	id := r.plan.First(i)
	if *s.state(i) == deferred {
		s.copyChunk(i, r.kept[id])
	} else {
		r.kept[id] = bytes.Clone(s.bytesOf(s.buf, s.chunk(i)))
	}
	if !keep {
		delete(r.kept, id)
	}
}
