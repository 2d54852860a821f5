package assemble

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"unsafe"

	"cairn/blob"
	"cairn/seed"
	"cairn/store"
)

// state is how far a chunk of a segment is. missing may become any other; read and shared what prove makes of them: held
// or cloned, inPlace, or missing again; deferred becomes held. The others are final, and settle counts them.
type state uint8

const (
	missing  state = iota
	read           // in the buffer, from a seed, not proven
	shared         // in the buffer, read from what the target shares with a seed, not proven
	held           // in the buffer, proven
	cloned         // on the target, shared with a seed, proven
	zero           // to be zeroed on the target
	inPlace        // the target holds it already
	deferred       // will be copied from elsewhere in the image
)

// segment is some consecutive chunks in the making. Its buffers are used again for the next ones.
type segment struct {
	job    *job
	lo, hi int   // the chunks' numbers
	start  int64 // offset of the first one in the image
	states []state
	space  []byte // memory of buf
	buf    []byte // the image's bytes
	old    []byte // the target's bytes, empty when they are not known
	// The chunks to prove or fetch; the bytes to prove, and their digests.
	which  []int
	data   [][]byte
	sums   []blob.Digest
	oldBuf []byte
	turn   *turn // nil when no order of reading and writing is to be kept
}

// set makes the segment stand for the chunks from lo up to but not including hi.
func (s *segment) set(lo, hi int) {
	s.lo, s.hi, s.start, s.states = lo, hi, 0, s.states[:0]
	var size int64
	if lo < hi {
		x := s.job.plan.Index
		s.start = x.At(lo).Offset
		size = x.At(hi-1).End() - s.start
	}
	for range hi - lo {
		s.states = append(s.states, missing)
	}
	s.space = resize(s.space, size+pageSize)
	s.buf = inStep(s.space, s.start)[:size]
	s.old = nil
}

// pageSize is what direct writes want memory and devices to be in step by: 4096 or, for all of today's sectors, a
// divisor of it.
const pageSize = 4096

// inStep is the part of space whose first byte lies in memory as the byte at off lies on the target, modulo
// pageSize.
func inStep(space []byte, off int64) []byte {
	at := int64(uintptr(unsafe.Pointer(&space[0])))
	return space[((off-at)%pageSize+pageSize)%pageSize:]
}

// resize gives p the length n, in new memory if it must; the content is lost.
func resize(p []byte, n int64) []byte {
	if int64(cap(p)) < n {
		return make([]byte, n, n+n/8)
	}
	return p[:n]
}

func (s *segment) chunk(i int) blob.Chunk { return s.job.plan.Index.At(i) }

// part is where chunk c lies in a buffer of the segment.
func (s *segment) part(buf []byte, c blob.Chunk) []byte {
	return buf[c.Offset-s.start:][:c.Size:c.Size]
}

// chunksIn yields the numbers of the chunks that are in a state.
func (s *segment) chunksIn(want state) func(yield func(int) bool) {
	return func(yield func(int) bool) {
		for i := s.lo; i < s.hi; i++ {
			if s.states[i-s.lo] == want && !yield(i) {
				return
			}
		}
	}
}

func (s *segment) state(i int) *state { return &s.states[i-s.lo] }

// gather brings every chunk into a state from which it can be written: held, zero, in place or deferred.
func (s *segment) gather(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.gatherLocal()
	if err := s.turn.pass(ctx); err != nil {
		return err
	}
	s.turn = nil
	if err := s.fetch(ctx); err != nil {
		return err
	}
	s.repeatsWithin()
	return nil
}

// gatherLocal does all of gather that needs no store: what it leaves missing is to be fetched.
func (s *segment) gatherLocal() {
	s.readOld()
	s.zeros()
	s.readSeeds()
	s.prove()
	s.tryOthers()
	s.deferRepeats()
}

// readOld reads what the target holds. What cannot be read is not known, and will be written.
func (s *segment) readOld() {
	if s.job.options.New || len(s.buf) == 0 {
		return
	}
	s.oldBuf = resize(s.oldBuf, int64(len(s.buf)))
	if n, _ := s.job.target.ReadAt(s.oldBuf, s.start); n == len(s.oldBuf) {
		s.old = s.oldBuf
	}
}

// zeros settles the all-zero chunks.
func (s *segment) zeros() {
	for i := range s.chunksIn(missing) {
		if s.job.plan.At(i).Kind != seed.Zero {
			continue
		}
		*s.state(i) = zero
		if s.old != nil && blob.AllZero(s.part(s.old, s.chunk(i))) {
			*s.state(i) = inPlace
		}
	}
}

// readSeeds reads what the plan takes from seeds; chunks that follow each other there are one read. What
// cannot be read stays missing.
func (s *segment) readSeeds() {
	for i := s.lo; i < s.hi; {
		if step := s.job.plan.At(i); step.Kind == seed.Local {
			run := s.seedRun(i, step)
			s.readRun(i, run, s.job.plan.Place(step))
			i = run
		} else {
			i++
		}
	}
}

// seedRun is the end of the run of chunks that begins with i and lies together in one seed.
func (s *segment) seedRun(i int, step seed.Step) int {
	end := i + 1
	for end < s.hi && s.job.plan.At(end) == (seed.Step{Kind: seed.Local, Seed: step.Seed, From: step.From + uint32(end-i)}) {
		end++
	}
	return end
}

// readRun reads the chunks from lo to hi, which lie together in a seed from a place on. Behind a chunk
// that cannot be read it goes on with the next one.
func (s *segment) readRun(lo, hi int, from seed.Place) {
	data, shift := s.job.plan.Seeds[from.Seed].Data, from.Offset-s.chunk(lo).Offset
	first, last := s.clone(data, from.Offset, s.chunk(lo).Offset, s.chunk(hi-1).End())
	for lo < hi {
		start := s.chunk(lo).Offset
		p := s.buf[start-s.start : s.chunk(hi-1).End()-s.start]
		n, _ := data.ReadAt(p, start+shift)
		for lo < hi && s.chunk(lo).End()-start <= int64(n) {
			*s.state(lo) = read
			lo++
		}
		lo++
	}
	s.reread(first, last)
}

// clone lets a new file share the bytes from start to end with a seed, where it can. It says which it does.
func (s *segment) clone(data io.ReaderAt, at, start, end int64) (lo, hi int64) {
	cloner, ok := s.job.target.(Cloner)
	if !ok || !s.job.options.New {
		return 0, 0
	}
	s.job.changed.Store(true)
	return cloner.Clone(data, at, start, end-start)
}

// reread reads what the target shares with a seed from the target, where nobody changes it after it is proven.
func (s *segment) reread(lo, hi int64) {
	if lo == hi {
		return
	}
	n, _ := s.job.target.ReadAt(s.buf[lo-s.start:hi-s.start], lo)
	for i := s.lo; i < s.hi; i++ {
		if c := s.chunk(i); c.Offset >= lo && c.End() <= lo+int64(n) {
			*s.state(i) = shared
		}
	}
}

// prove hashes what was read from seeds and, for the other chunks, what the target holds: all at once.
func (s *segment) prove() {
	s.which, s.data = s.which[:0], s.data[:0]
	for i := s.lo; i < s.hi; i++ {
		switch {
		case *s.state(i) == read || *s.state(i) == shared:
			s.toProve(i, s.buf)
		case *s.state(i) == missing && s.old != nil && !blob.AllZero(s.part(s.old, s.chunk(i))): // a zero chunk is settled by now
			s.toProve(i, s.old)
		}
	}
	for n, sum := range s.sumAll() {
		i := s.which[n]
		s.proven(i, sum == s.chunk(i).Digest)
	}
}

// sumAll returns the digests of the data to prove. They are valid until the next call.
func (s *segment) sumAll() []blob.Digest {
	if len(s.sums) < len(s.data) {
		s.sums = make([]blob.Digest, 2*len(s.data))
	}
	s.job.plan.Index.Algorithm().SumAll(s.sums, s.data)
	return s.sums[:len(s.data)]
}

func (s *segment) toProve(i int, buf []byte) {
	s.which, s.data = append(s.which, i), append(s.data, s.part(buf, s.chunk(i)))
}

func (s *segment) proven(i int, right bool) {
	st := s.state(i)
	switch {
	case right && *st == read:
		s.hold(i, s.job.plan.At(i).Seed)
	case right && *st == shared:
		s.settle(i, cloned, seed.Step{Kind: seed.Local, Seed: s.job.plan.At(i).Seed})
	case right:
		*st = inPlace
	case *st == read || *st == shared:
		*st = missing
	}
}

// hold settles that chunk i is in the buffer, proven, from a seed; unless the target holds the same.
func (s *segment) hold(i int, from uint16) {
	c := s.chunk(i)
	if s.old != nil && bytes.Equal(s.part(s.buf, c), s.part(s.old, c)) {
		*s.state(i) = inPlace
		return
	}
	s.settle(i, held, seed.Step{Kind: seed.Local, Seed: from})
}

// settle makes st the final state of chunk i, and counts it as coming from a source.
func (s *segment) settle(i int, st state, from seed.Step) {
	*s.state(i) = st
	s.job.count.add(from, s.chunk(i).Size)
	if s.job.sources != nil {
		s.job.sources[i] = from
	}
}

// tryOthers looks for the chunks that their seed failed to give: in the other seeds, then in place.
func (s *segment) tryOthers() {
	for i := range s.chunksIn(missing) {
		if step := s.job.plan.At(i); step.Kind == seed.Local {
			s.job.count.misses.Add(1)
			s.tryOther(i, int(step.Seed))
		}
	}
}

func (s *segment) tryOther(i, failed int) {
	c := s.chunk(i)
	sum := s.job.plan.Index.Algorithm().Sum
	for _, place := range s.job.plan.Places(i) {
		if place.Seed == failed {
			continue
		}
		p := s.part(s.buf, c)
		n, _ := s.job.plan.Seeds[place.Seed].Data.ReadAt(p, place.Offset)
		if n == len(p) && sum(p) == c.Digest {
			s.hold(i, uint16(place.Seed))
			return
		}
	}
	if s.old != nil && sum(s.part(s.old, c)) == c.Digest {
		*s.state(i) = inPlace
	}
}

// deferRepeats leaves chunks that come earlier in the image for later, so that each is fetched once.
func (s *segment) deferRepeats() {
	if s.job.repeated != nil {
		s.deferCopies()
		return
	}
	for i := range s.chunksIn(missing) {
		first := s.job.plan.First(i)
		if first == i {
			continue
		}
		*s.state(i) = deferred
		if first < s.lo {
			s.job.addRepeat(i)
		}
	}
}

// fetch gets all chunks that are still missing from the store, many at once. After an error some may be held.
func (s *segment) fetch(ctx context.Context) error {
	var wants []store.Want
	s.which = s.which[:0]
	for i := range s.chunksIn(missing) {
		c := s.chunk(i)
		s.which = append(s.which, i)
		wants = append(wants, store.Want{Digest: c.Digest, Dst: s.part(s.buf, c)})
	}
	if len(wants) == 0 {
		return nil
	}
	err := store.GetAll(ctx, s.job.from, wants, func(n int) { s.settle(s.which[n], held, seed.Step{Kind: seed.Fetch}) })
	if err != nil {
		return fmt.Errorf("fetching for the image's bytes from %d: %w", s.start, err)
	}
	return nil
}

// repeatsWithin copies the chunks that repeat one of this segment.
func (s *segment) repeatsWithin() {
	for i := range s.chunksIn(deferred) {
		first := s.job.plan.First(i)
		if first < s.lo {
			continue
		}
		from := s.buf
		if *s.state(first) == inPlace {
			from = s.old
		}
		s.copied(i, s.part(from, s.chunk(first)))
	}
}

// copied puts the proven bytes p into chunk i's place.
func (s *segment) copied(i int, p []byte) {
	copy(s.part(s.buf, s.chunk(i)), p)
	s.settle(i, held, seed.Step{Kind: seed.Copy})
}

// copyFrom fills the segment, which is a single chunk, from an equal chunk that is in the head, or on the
// target by now. If the target does not give it back right, it is fetched.
func (s *segment) copyFrom(ctx context.Context, first int, head *segment) error {
	c := s.chunk(first)
	if first < head.hi {
		s.copied(s.lo, head.bytes(first))
		return nil
	}
	n, _ := s.job.target.ReadAt(s.buf, c.Offset)
	if n == len(s.buf) && s.job.plan.Index.Algorithm().Sum(s.buf) == c.Digest {
		s.settle(s.lo, held, seed.Step{Kind: seed.Copy})
		return nil
	}
	return s.fetch(ctx)
}

// bytes is chunk i, which is settled and neither zero nor deferred.
func (s *segment) bytes(i int) []byte {
	if *s.state(i) == inPlace {
		return s.part(s.old, s.chunk(i))
	}
	return s.part(s.buf, s.chunk(i))
}

// inPlace says whether nothing of the segment needs writing.
func (s *segment) inPlace() bool {
	for _, st := range s.states {
		if st != inPlace {
			return false
		}
	}
	return true
}

// write brings the chunks onto the target that are not there: data and zeros in runs as long as can be.
func (s *segment) write() error {
	for i := s.lo; i < s.hi; {
		st, end := *s.state(i), i+1
		for end < s.hi && *s.state(end) == st {
			end++
		}
		if err := s.writeRun(st, i, end); err != nil {
			return err
		}
		i = end
	}
	return nil
}

// writeRun writes the chunks from lo to hi, which are all in state st.
func (s *segment) writeRun(st state, lo, hi int) error {
	if st == missing || st == inPlace || st == deferred || st == cloned || st == zero && s.job.options.New {
		return nil
	}
	if err := s.job.change(); err != nil {
		return err
	}
	s.changes(lo, hi)
	start, end := s.chunk(lo).Offset, s.chunk(hi-1).End()
	if st == zero {
		if err := s.job.target.Zero(start, end-start); err != nil {
			return fmt.Errorf("zeroing %d bytes at %d of the target: %w", end-start, start, err)
		}
		return nil
	}
	return s.job.writeAt(s.buf[start-s.start:end-s.start], start)
}

// writeWhole writes all of the segment, which is the head, durably, as nothing of it is in place any more; its marks
// when the rest is on the medium. In a new file there is nothing to make up for.
func (s *segment) writeWhole() error {
	if s.job.options.New {
		if err := s.write(); err != nil {
			return err
		}
		return s.job.sync()
	}
	for i := s.lo; i < s.hi; i++ {
		switch *s.state(i) {
		case inPlace:
			copy(s.part(s.buf, s.chunk(i)), s.part(s.old, s.chunk(i)))
		case zero:
			clear(s.part(s.buf, s.chunk(i)))
		case missing, read, shared, cloned, deferred:
			return errors.New("assemble: a chunk of the head is not settled")
		}
	}
	s.changes(s.lo, s.hi)
	marks, others := parts(len(s.buf))
	slices.Reverse(marks)
	return s.job.writeParts(s.buf, append(others, marks...))
}

// changes notes that the chunks from lo to hi are not what they were.
func (s *segment) changes(lo, hi int) {
	for i := lo; i < hi; i++ {
		s.job.changes.Add(i)
	}
}

// readBack reads the changed chunks, or all, back from the medium and compares their digests. Each run of chunks is one
// read.
func (s *segment) readBack() error {
	read := s.job.target.ReadAt
	if medium, ok := s.job.target.(Rereader); ok {
		read = medium.ReadBack
	}
	wanted := func(i int) bool { return i < s.hi && (s.job.options.Verify == All || s.job.changes.Has(i)) }
	s.which, s.data = s.which[:0], s.data[:0]
	for i := s.lo; i < s.hi; i++ {
		start, lo := s.chunk(i).Offset, i
		for ; wanted(i); i++ {
			s.toProve(i, s.buf)
		}
		if i == lo {
			continue
		}
		p := s.buf[start-s.start : s.chunk(i-1).End()-s.start]
		if n, err := read(p, start); n < len(p) {
			return fmt.Errorf("reading back %d bytes at %d of the target: %w", len(p), start, err)
		}
	}
	for n, sum := range s.sumAll() {
		if c := s.chunk(s.which[n]); sum != c.Digest {
			return fmt.Errorf("%w: %d bytes at %d differ", ErrMedium, c.Size, c.Offset)
		}
	}
	return nil
}

// done counts what is settled and was not counted when its bytes came.
func (s *segment) done() {
	for i := s.lo; i < s.hi; i++ {
		switch *s.state(i) {
		case inPlace:
			s.settle(i, inPlace, seed.Step{Kind: seed.InPlace})
		case zero:
			s.settle(i, zero, seed.Step{Kind: seed.Zero})
		}
	}
	s.job.tell()
}
