package assemble

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"unsafe"

	"cairn/blob"
	"cairn/seed"
	"cairn/store"
)

// state is the progress of a chunk of a segment. missing may become any other state. verifyLocal turns
// read into verified, inPlace or missing, and shared into cloned or missing. deferred becomes verified.
// The other states are final, and setFinal counts their bytes.
type state uint8

const (
	missing  state = iota
	read           // in the buffer, from a seed, not verified
	shared         // in the buffer, read from the part of the target that is shared with a seed, not verified
	verified       // in the buffer, verified
	cloned         // on the target, shared with a seed, verified
	zero           // to be zeroed on the target
	inPlace        // the target holds it already
	deferred       // will be copied from elsewhere in the image
)

// segment is a run of consecutive chunks under assembly. Its buffers are reused for the next run.
type segment struct {
	job    *job
	lo, hi int   // numbers of the chunks: [lo, hi)
	start  int64 // offset of the first chunk in the image
	states []state
	memory []byte // backs buf
	buf    []byte // the image's bytes
	old    []byte // the target's old bytes; nil if unknown
	// batch is the numbers of the chunks to hash. batchData is the bytes to hash, and digests
	// their results.
	batch     []int
	batchData [][]byte
	digests   []blob.Digest
	oldBuf    []byte
	turn      *turn // nil if segments may be read and written in any order
}

// setRange assigns the chunks [lo, hi) to the segment.
func (s *segment) setRange(lo, hi int) {
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
	s.memory = resizeBuffer(s.memory, size+pageSize)
	s.buf = alignTo(s.memory, s.start)[:size]
	s.old = nil
}

// pageSize is the alignment that direct writes need. It is a multiple of the sector size of all today's
// devices.
const pageSize = 4096

// alignTo returns the part of space whose address equals off modulo pageSize.
func alignTo(space []byte, off int64) []byte {
	at := int64(uintptr(unsafe.Pointer(&space[0])))
	return space[((off-at)%pageSize+pageSize)%pageSize:]
}

// resizeBuffer returns a buffer of n bytes, p if it is large enough. Its content is undefined.
func resizeBuffer(p []byte, n int64) []byte {
	if int64(cap(p)) < n {
		return make([]byte, n, n+n/8)
	}
	return p[:n]
}

func (s *segment) chunk(i int) blob.Chunk { return s.job.plan.Index.At(i) }

// bytesOf returns the bytes of chunk c in a buffer of the segment.
func (s *segment) bytesOf(buf []byte, c blob.Chunk) []byte {
	return buf[c.Offset-s.start:][:c.Size:c.Size]
}

// chunksIn yields the numbers of the chunks in state want.
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

// gather brings every chunk into a state that can be written: verified, cloned, zero, inPlace or
// deferred.
func (s *segment) gather(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.gatherLocal()
	if s.turn != nil {
		if err := s.turn.awaitPrevious(ctx); err != nil {
			return err
		}
		s.turn.startNext()
		s.turn = nil
	}
	if err := s.fetchMissing(ctx); err != nil {
		return err
	}
	s.copyRepeatsWithin()
	return nil
}

// gatherLocal is the part of gather that needs no store. The chunks that it leaves missing must be
// fetched.
func (s *segment) gatherLocal() {
	s.readOld()
	s.settleZeros()
	s.readSeeds()
	s.verifyLocal()
	s.recoverMisses()
	s.deferRepeats()
}

// readOld reads the target's old content. Unreadable content counts as unknown, and is overwritten.
func (s *segment) readOld() {
	if s.job.options.New || len(s.buf) == 0 {
		return
	}
	s.oldBuf = resizeBuffer(s.oldBuf, int64(len(s.buf)))
	if n, _ := s.job.target.ReadAt(s.oldBuf, s.start); n == len(s.oldBuf) {
		s.old = s.oldBuf
	}
}

// settleZeros sets the state of the all-zero chunks.
func (s *segment) settleZeros() {
	for i := range s.chunksIn(missing) {
		if s.job.plan.At(i).Kind != seed.Zero {
			continue
		}
		*s.state(i) = zero
		if s.old != nil && blob.AllZero(s.bytesOf(s.old, s.chunk(i))) {
			*s.state(i) = inPlace
		}
	}
}

// readSeeds reads the chunks that the plan takes from seeds. Chunks that are adjacent in a seed are one
// read. Unreadable chunks stay missing.
func (s *segment) readSeeds() {
	for i := s.lo; i < s.hi; {
		step := s.job.plan.At(i)
		if step.Kind != seed.Local {
			i++
			continue
		}
		end := i + 1
		for end < s.hi && s.job.plan.At(end) == (seed.Step{Kind: seed.Local, Seed: step.Seed, From: step.From + uint32(end-i)}) {
			end++
		}
		s.readRun(i, end, s.job.plan.Place(step))
		i = end
	}
}

// readRun reads the chunks [lo, hi), which are adjacent in a seed, beginning at from. After an
// unreadable chunk it continues with the next one.
func (s *segment) readRun(lo, hi int, from seed.Place) {
	data, shift := s.job.plan.Seeds[from.Seed].Data, from.Offset-s.chunk(lo).Offset
	first, last := s.tryClone(data, from.Offset, s.chunk(lo).Offset, s.chunk(hi-1).End())
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
	s.rereadShared(first, last)
}

// tryClone shares the bytes [start, end) of a new file with a seed, if the target supports it. It
// returns the shared range.
func (s *segment) tryClone(data io.ReaderAt, at, start, end int64) (lo, hi int64) {
	cloner, ok := s.job.target.(Cloner)
	if !ok || !s.job.options.New {
		return 0, 0
	}
	s.job.changed.Store(true)
	return cloner.Clone(data, at, start, end-start)
}

// rereadShared reads the shared range [lo, hi) from the target. A writer of the seed cannot change
// these bytes after they are verified.
func (s *segment) rereadShared(lo, hi int64) {
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

// verifyLocal hashes in one batch the chunks that were read from seeds and, for the missing ones, the
// old content of the target.
func (s *segment) verifyLocal() {
	s.batch, s.batchData = s.batch[:0], s.batchData[:0]
	for i := s.lo; i < s.hi; i++ {
		switch {
		case *s.state(i) == read || *s.state(i) == shared:
			s.queueHash(i, s.buf)
		case *s.state(i) == missing && s.old != nil && !blob.AllZero(s.bytesOf(s.old, s.chunk(i))): // all-zero chunks have their state already
			s.queueHash(i, s.old)
		}
	}
	for n, sum := range s.hashQueued() {
		i := s.batch[n]
		s.recordResult(i, sum == s.chunk(i).Digest)
	}
}

// hashQueued returns the digests of batchData. They are valid until the next call.
func (s *segment) hashQueued() []blob.Digest {
	if len(s.digests) < len(s.batchData) {
		s.digests = make([]blob.Digest, 2*len(s.batchData))
	}
	s.job.plan.Index.Algorithm().SumAll(s.digests, s.batchData)
	return s.digests[:len(s.batchData)]
}

func (s *segment) queueHash(i int, buf []byte) {
	s.batch, s.batchData = append(s.batch, i), append(s.batchData, s.bytesOf(buf, s.chunk(i)))
}

func (s *segment) recordResult(i int, right bool) {
	st := s.state(i)
	switch {
	case right && *st == read:
		s.setVerified(i, s.job.plan.At(i).Seed)
	case right && *st == shared:
		s.setFinal(i, cloned, seed.Step{Kind: seed.Local, Seed: s.job.plan.At(i).Seed})
	case right:
		*st = inPlace
	case *st == read || *st == shared:
		*st = missing
	}
}

// setVerified makes chunk i verified, with the seed as its source. If the target holds equal bytes, the
// chunk is inPlace instead.
func (s *segment) setVerified(i int, from uint16) {
	c := s.chunk(i)
	if s.old != nil && bytes.Equal(s.bytesOf(s.buf, c), s.bytesOf(s.old, c)) {
		*s.state(i) = inPlace
		return
	}
	s.setFinal(i, verified, seed.Step{Kind: seed.Local, Seed: from})
}

// setFinal sets the final state of chunk i, and counts its bytes for a source.
func (s *segment) setFinal(i int, st state, from seed.Step) {
	size, counters := s.chunk(i).Size, &s.job.counters
	*s.state(i) = st
	counters.kinds[from.Kind].Add(size)
	switch from.Kind {
	case seed.Local:
		counters.seeds[from.Seed].Add(size)
	case seed.InPlace:
		counters.inPlaces.Add(1)
	case seed.Fetch:
		counters.fetches.Add(1)
	case seed.Delta:
		counters.deltas.Add(1)
	}
	if s.job.sources != nil {
		s.job.sources[i] = from
	}
}

// recoverMisses looks for the chunks that their seed did not hold in the other seeds, and then in
// place.
func (s *segment) recoverMisses() {
	for i := range s.chunksIn(missing) {
		if step := s.job.plan.At(i); step.Kind == seed.Local {
			s.job.counters.misses.Add(1)
			s.recoverChunk(i, int(step.Seed))
		}
	}
}

func (s *segment) recoverChunk(i, failed int) {
	c := s.chunk(i)
	sum := s.job.plan.Index.Algorithm().Sum
	for _, place := range s.job.plan.Places(i) {
		if place.Seed == failed {
			continue
		}
		p := s.bytesOf(s.buf, c)
		n, _ := s.job.plan.Seeds[place.Seed].Data.ReadAt(p, place.Offset)
		if n == len(p) && sum(p) == c.Digest {
			s.setVerified(i, uint16(place.Seed))
			return
		}
	}
	if s.old != nil && sum(s.bytesOf(s.old, c)) == c.Digest {
		*s.state(i) = inPlace
	}
}

// deferRepeats defers the missing chunks that repeat an earlier one, so that each is fetched once.
func (s *segment) deferRepeats() {
	if r := s.job.streamRepeats; r != nil {
		for i := range s.chunksIn(missing) {
			if r.copies.Has(i) {
				*s.state(i) = deferred
			}
		}
		return
	}
	for i := range s.chunksIn(missing) {
		first := s.job.plan.First(i)
		if first == i {
			continue
		}
		*s.state(i) = deferred
		if first < s.lo {
			s.job.mu.Lock()
			s.job.copyLater = append(s.job.copyLater, i)
			s.job.mu.Unlock()
		}
	}
}

// fetchMissing fetches all missing chunks from the store, many at once. Those that the plan makes from a
// delta are made at the same time; if that fails, they are fetched too. After an error some chunks may
// be verified.
func (s *segment) fetchMissing(ctx context.Context) error {
	var fetches, deltas []int
	for i := range s.chunksIn(missing) {
		if s.job.plan.At(i).Kind == seed.Delta {
			deltas = append(deltas, i)
		} else {
			fetches = append(fetches, i)
		}
	}
	if len(deltas) == 0 {
		return s.fetch(ctx, fetches)
	}
	var failed []int
	made := make(chan struct{})
	go func() {
		defer close(made)
		failed = s.makeFromDelta(ctx, deltas)
	}()
	err := s.fetch(ctx, fetches)
	<-made
	if err != nil {
		return err
	}
	return s.fetch(ctx, failed)
}

// fetch fetches chunks from the store.
func (s *segment) fetch(ctx context.Context, chunks []int) error {
	if len(chunks) == 0 {
		return nil
	}
	err := store.GetAll(ctx, s.job.from, s.wants(chunks), func(n int) { s.setFinal(chunks[n], verified, seed.Step{Kind: seed.Fetch}) })
	if err != nil {
		return fmt.Errorf("fetching chunks from byte %d of the image: %w", s.start, err)
	}
	return nil
}

// makeFromDelta makes chunks from the delta, and returns those that it failed to make.
func (s *segment) makeFromDelta(ctx context.Context, chunks []int) (failed []int) {
	var mu sync.Mutex // guards failed
	s.job.options.Delta.Get(ctx, s.wants(chunks), func(n int, err error) {
		if err == nil {
			s.setFinal(chunks[n], verified, seed.Step{Kind: seed.Delta})
			return
		}
		mu.Lock()
		defer mu.Unlock()
		failed = append(failed, chunks[n])
		s.job.counters.deltaMisses.Add(1)
	})
	slices.Sort(failed)
	return failed
}

func (s *segment) wants(chunks []int) []store.Want {
	wants := make([]store.Want, len(chunks))
	for n, i := range chunks {
		c := s.chunk(i)
		wants[n] = store.Want{Digest: c.Digest, Dst: s.bytesOf(s.buf, c)}
	}
	return wants
}

// copyRepeatsWithin copies the chunks that repeat one of the same segment.
func (s *segment) copyRepeatsWithin() {
	for i := range s.chunksIn(deferred) {
		first := s.job.plan.First(i)
		if first < s.lo {
			continue
		}
		from := s.buf
		if *s.state(first) == inPlace {
			from = s.old
		}
		s.copyChunk(i, s.bytesOf(from, s.chunk(first)))
	}
}

// copyChunk copies the verified bytes p into the buffer of chunk i.
func (s *segment) copyChunk(i int, p []byte) {
	copy(s.bytesOf(s.buf, s.chunk(i)), p)
	s.setFinal(i, verified, seed.Step{Kind: seed.Copy})
}

// copyFrom fills the segment, which is a single chunk, from an equal chunk in the head or on the
// target. If the target does not return the right bytes, the chunk is fetched.
func (s *segment) copyFrom(ctx context.Context, first int, head *segment) error {
	c := s.chunk(first)
	if first < head.hi {
		s.copyChunk(s.lo, head.finalBytes(first))
		return nil
	}
	n, _ := s.job.target.ReadAt(s.buf, c.Offset)
	if n == len(s.buf) && s.job.plan.Index.Algorithm().Sum(s.buf) == c.Digest {
		s.setFinal(s.lo, verified, seed.Step{Kind: seed.Copy})
		return nil
	}
	return s.fetchMissing(ctx)
}

// finalBytes returns the bytes of chunk i, whose state is verified, cloned or inPlace.
func (s *segment) finalBytes(i int) []byte {
	if *s.state(i) == inPlace {
		return s.bytesOf(s.old, s.chunk(i))
	}
	return s.bytesOf(s.buf, s.chunk(i))
}

// inPlace reports whether nothing of the segment needs to be written.
func (s *segment) inPlace() bool {
	for _, st := range s.states {
		if st != inPlace {
			return false
		}
	}
	return true
}

// writeChunks writes the chunks that the target does not hold, in runs of equal state.
func (s *segment) writeChunks() error {
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

// writeRun writes the chunks [lo, hi), which are all in state st.
func (s *segment) writeRun(st state, lo, hi int) error {
	if st == missing || st == inPlace || st == deferred || st == cloned || st == zero && s.job.options.New {
		return nil
	}
	if err := s.job.beginChange(); err != nil {
		return err
	}
	s.markChanged(lo, hi)
	start, end := s.chunk(lo).Offset, s.chunk(hi-1).End()
	if st == zero {
		if err := s.job.target.Zero(start, end-start); err != nil {
			return fmt.Errorf("zeroing %d bytes at %d of the target: %w", end-start, start, err)
		}
		return nil
	}
	return s.job.writeAt(s.buf[start-s.start:end-s.start], start)
}

// writeWhole writes the segment, which is the head, durably. It writes even the chunks that were in
// place, since the head was invalidated. The superblocks come last. In a new file nothing was
// invalidated.
func (s *segment) writeWhole() error {
	if s.job.options.New {
		if err := s.writeChunks(); err != nil {
			return err
		}
		return s.job.syncTarget()
	}
	for i := s.lo; i < s.hi; i++ {
		switch *s.state(i) {
		case inPlace:
			copy(s.bytesOf(s.buf, s.chunk(i)), s.bytesOf(s.old, s.chunk(i)))
		case zero:
			clear(s.bytesOf(s.buf, s.chunk(i)))
		case missing, read, shared, cloned, deferred:
			return errors.New("assemble: a chunk of the head has no final state")
		}
	}
	s.markChanged(s.lo, s.hi)
	superblocks, others := splitHead(len(s.buf))
	slices.Reverse(superblocks)
	return s.job.writeParts(s.buf, append(others, superblocks...))
}

// markChanged records that the chunks [lo, hi) were written or zeroed.
func (s *segment) markChanged(lo, hi int) {
	for i := lo; i < hi; i++ {
		s.job.changes.Add(i)
	}
}

// readBack reads the selected chunks back from the medium and compares their digests. Each run of
// chunks is one read.
func (s *segment) readBack() error {
	read := s.job.target.ReadAt
	if medium, ok := s.job.target.(Rereader); ok {
		read = medium.ReadBack
	}
	wanted := func(i int) bool { return i < s.hi && (s.job.options.Verify == All || s.job.changes.Has(i)) }
	s.batch, s.batchData = s.batch[:0], s.batchData[:0]
	for i := s.lo; i < s.hi; i++ {
		start, lo := s.chunk(i).Offset, i
		for ; wanted(i); i++ {
			s.queueHash(i, s.buf)
		}
		if i == lo {
			continue
		}
		p := s.buf[start-s.start : s.chunk(i-1).End()-s.start]
		if n, err := read(p, start); n < len(p) {
			return fmt.Errorf("reading back %d bytes at %d of the target: %w", len(p), start, err)
		}
	}
	for n, sum := range s.hashQueued() {
		if c := s.chunk(s.batch[n]); sum != c.Digest {
			return fmt.Errorf("%w: %d bytes at %d differ", ErrMedium, c.Size, c.Offset)
		}
	}
	return nil
}

// countDone counts the chunks that no setFinal has counted yet, and reports progress.
func (s *segment) countDone() {
	for i := s.lo; i < s.hi; i++ {
		switch *s.state(i) {
		case inPlace:
			s.setFinal(i, inPlace, seed.Step{Kind: seed.InPlace})
		case zero:
			s.setFinal(i, zero, seed.Step{Kind: seed.Zero})
		}
	}
	if j := s.job; j.options.Progress != nil {
		j.progressMu.Lock()
		defer j.progressMu.Unlock()
		j.options.Progress(j.stats())
	}
}
