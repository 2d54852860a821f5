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

// Sink takes an image, or a part of it, in order.
type Sink struct {
	io.Writer
	Offset, Size int64 // the part
}

// ZeroWriter is a writer that has a cheaper way to write zeros.
type ZeroWriter interface{ WriteZeros(n int64) error }

// Stream writes a part of the plan's image to a writer that cannot be read or positioned: each byte once, in order,
// and only after its chunk was hashed. Segments are put together ahead of the writer, several at once. A failure
// ends the stream where its segment begins; all bytes before that are written. A chunk that repeats is kept in
// memory where a quarter of Options.Memory suffices, and fetched again where it does not.
//
// Of the options New, Own, Verify and Changing do not count; a part that begins behind the first chunk is not inspected.
func Stream(ctx context.Context, p *seed.Plan, from store.Getter, to Sink, o Options) (Stats, error) {
	if end := p.Index.Size(); to.Offset < 0 || to.Size < 0 || to.Offset > end-to.Size {
		return Stats{}, fmt.Errorf("%d bytes at %d are not within the image's %d", to.Size, to.Offset, end)
	}
	j := newStream(p, from, to, o)
	err := j.each(ctx, &j.order, func(ctx context.Context, s *segment) error {
		s.gatherLocal()
		gathered := s.fetch(ctx)
		if err := s.turn.wait(ctx); err != nil {
			return err
		}
		if gathered == nil && s.lo == 0 {
			gathered = j.inspect(s)
		}
		if gathered != nil {
			return gathered
		}
		if err := s.emit(to); err != nil {
			return err
		}
		s.turn.end()
		return nil
	})
	if err != nil {
		return j.stats(), err
	}
	return j.stats(), ctx.Err()
}

// newStream is the job of a stream.
func newStream(p *seed.Plan, from store.Getter, to Sink, o Options) *job {
	o.Stream, o.New, o.Own = true, true, 0
	j := newJob(p, from, nil, o)
	lo, hi := 0, 0
	if to.Size > 0 {
		lo, hi = p.Index.Find(to.Offset), p.Index.Find(to.Offset+to.Size-1)+1
	}
	j.order.runs = []run{{lo, hi}}
	j.order.keepTurns()
	if lo > 0 || hi < p.Index.Len() {
		j.repeated = planRepeats(p, lo, hi, j.repeated.limit)
	}
	return j
}

// deferCopies leaves the chunks for later whose bytes are kept when the stream comes to them.
func (s *segment) deferCopies() {
	for i := range s.chunksIn(missing) {
		if s.job.repeated.copies.Has(i) {
			*s.state(i) = deferred
		}
	}
}

// emit writes the segment. All segments before it were written.
func (s *segment) emit(to Sink) error {
	for i := s.lo; i < s.hi; i++ {
		s.job.repeated.pass(s, i)
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
		s.job.count.written.Add(hi - lo)
		i = end
	}
	return nil
}

// clearZeros brings the zero chunks from lo to hi into the buffer.
func (s *segment) clearZeros(lo, hi int) {
	for i := range s.chunksIn(zero) {
		if lo <= i && i < hi {
			clear(s.part(s.buf, s.chunk(i)))
		}
	}
}

// repeats says which chunks of a stream stay in memory until they come again. Those that do not stay are fetched again.
type repeats struct {
	plan   *seed.Plan
	limit  int64          // bytes
	keeps  *bitset.Set    // the chunks that stay until they come the next time
	copies *bitset.Set    // the chunks that are copied from what stayed
	kept   map[int][]byte // by the number of the first such chunk in the image; the segment that is written uses it
}

// interval is a time during which a chunk stays.
type interval struct{ at, next int }

// planRepeats decides which of the chunks from lo to hi stay, never more than limit bytes at once: where there is no
// room, the chunk goes that comes again last. A preview decides the same.
func planRepeats(p *seed.Plan, lo, hi int, limit int64) *repeats {
	n := p.Index.Len()
	r := &repeats{plan: p, limit: limit, keeps: bitset.New(n), copies: bitset.New(n), kept: map[int][]byte{}}
	next := nextCopies(p, lo, hi)
	var staying []interval // by next
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

// nextCopies says for each chunk from lo to hi which one is its next copy, or 0; nothing when there are no copies.
func nextCopies(p *seed.Plan, lo, hi int) []uint32 {
	var next []uint32
	last := map[int]int{} // by the number of the first such chunk in the image
	for i := hi - 1; i >= lo; i-- {
		kind := p.At(i).Kind
		if kind != seed.Copy && kind != seed.Fetch {
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

// pass copies chunk i into its place, or lets it stay, as the stream passes it.
func (r *repeats) pass(s *segment, i int) {
	keep := r.keeps.Has(i)
	if *s.state(i) != deferred && !keep {
		return
	}
	id := r.plan.First(i)
	if *s.state(i) == deferred {
		s.copied(i, r.kept[id])
	} else {
		r.kept[id] = bytes.Clone(s.part(s.buf, s.chunk(i)))
	}
	if !keep {
		delete(r.kept, id)
	}
}
