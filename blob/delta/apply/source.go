package apply

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"cairn/blob"
	"cairn/blob/delta"
	"cairn/internal/bitset"
	"cairn/store"
)

const (
	// maxResident is the number of parts in memory beyond which no part is read ahead.
	maxResident = 2
	// maxAttempts is the number of requests for a part of the file.
	maxAttempts = 3
	// leastFailures is the number of failed chunks after which a source gives up if most chunks failed.
	leastFailures = 16
)

// errFailed is wrapped by the outcome of each chunk that a source does not make.
var errFailed = errors.New("not made from the delta")

// Source is a Getter of the chunks of a selection. Every other chunk, and each that cannot be made, is an
// error: it must come from the store. Each chunk can be got once. A source reads the file's parts ahead
// of the chunks that are wanted, and best if they are wanted in the order of the image.
type Source struct {
	index     *blob.Index
	find      func(blob.Digest) int
	selection *Selection
	largest   int64 // part, bytes
	old       io.ReaderAt
	decoders  *Decoders
	ctx       context.Context // of the requests
	cancel    context.CancelFunc
	running   sync.WaitGroup

	mu       sync.Mutex // guards the fields below
	parts    []partState
	streams  []*stream   // of each request; nil if it is not under way. The reader of a part uses its own without mu
	resident int         // parts in memory or on their way
	spare    [][]byte    // memory of released parts
	taken    *bitset.Set // selected rows that were wanted
	outcomes outcomes    // of chunks
	gaveUp   error       // why no more chunks are made; nil while they are
}

var _ store.Getter = (*Source)(nil)

// partState is a part of the file in memory.
type partState struct {
	ready chan struct{} // closed when data or err is set; nil before the part is requested
	data  []byte
	err   error
	left  int // rows that were not taken
}

// NewSource returns a source for the image of x, in which find finds the first chunk with a digest, or
// -1. old reads the old image.
func NewSource(ctx context.Context, x *blob.Index, find func(blob.Digest) int, s *Selection, old io.ReaderAt) *Source {
	src := &Source{
		index: x, find: find, selection: s, old: old, parts: make([]partState, len(s.parts)),
		streams: make([]*stream, len(s.requests)), taken: bitset.New(len(s.rows)),
		decoders: NewDecoders(),
	}
	src.ctx, src.cancel = context.WithCancel(ctx)
	for i, p := range s.parts {
		src.parts[i].left = p.rows
		src.largest = max(src.largest, p.size)
	}
	return src
}

// Close ends the requests under way, and those of the selection's file. No Get may be under way.
func (s *Source) Close() {
	s.cancel()
	s.selection.file.Close()
	s.running.Wait()
	for _, stream := range s.streams {
		if stream != nil {
			stream.close()
		}
	}
	s.decoders.Close()
}

// find returns the position of a chunk's row in rows.
func (s *Selection) find(chunk int) (at int, ok bool) {
	return slices.BinarySearchFunc(s.rows, uint32(chunk), func(r selected, chunk uint32) int { return int(r.chunk) - int(chunk) })
}

// Get implements store.Getter. It hashes the chunks together.
func (s *Source) Get(ctx context.Context, wants []store.Want, done func(i int, err error)) {
	var made []int
	var data [][]byte
	for i, w := range wants {
		if err := s.makeChunk(ctx, w); err != nil {
			done(i, err)
			continue
		}
		made, data = append(made, i), append(data, w.Dst)
	}
	digests := make([]blob.Digest, len(made))
	s.index.Algorithm().SumAll(digests, data)
	for n, i := range made {
		err := error(nil)
		if digests[n] != wants[i].Digest {
			err = fmt.Errorf("chunk %v: %w: other bytes came of it", wants[i].Digest, errFailed)
		}
		s.countOutcome(err)
		done(i, err)
	}
}

// makeChunk decodes a chunk into w.Dst. The caller must hash it.
func (s *Source) makeChunk(ctx context.Context, w store.Want) error {
	chunk := s.find(w.Digest)
	at, ok := 0, false
	if chunk >= 0 && s.index.At(chunk).Size == int64(len(w.Dst)) {
		at, ok = s.selection.find(chunk)
	}
	if !ok || !s.take(at) {
		return fmt.Errorf("chunk %v: %w", w.Digest, errFailed)
	}
	r := s.selection.rows[at]
	defer s.releaseRow(int(r.part))
	data, err := s.awaitPart(ctx, int(r.part))
	if err == nil {
		row := s.selection.file.Row(int(r.row))
		payload := data[row.Offset-s.selection.parts[r.part].offset:][:row.Size]
		err = s.decoders.decode(ctx, w.Dst, row, payload, s.old)
	}
	if err != nil {
		if ctx.Err() == nil {
			s.countOutcome(err)
		}
		return fmt.Errorf("chunk %v: %w: %w", w.Digest, errFailed, err)
	}
	return nil
}

// take marks a selected row as wanted. It reports whether it was not before, and the source has not
// given up.
func (s *Source) take(at int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gaveUp == nil && s.taken.Add(at)
}

func (s *Source) countOutcome(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.outcomes.add(err) && s.gaveUp == nil {
		s.gaveUp = err
	}
}

// outcomes counts the chunks that were made from a delta, and that failed.
type outcomes struct{ tried, failed int }

// add counts a chunk. It reports whether the delta is to be given up, because most chunks failed, this one too.
func (o *outcomes) add(err error) (giveUp bool) {
	o.tried++
	if err == nil {
		return false
	}
	o.failed++
	return o.failed >= leastFailures && 2*o.failed > o.tried
}

// awaitPart returns the bytes of a part of the file. It requests the part, and the next one if there is
// room.
func (s *Source) awaitPart(ctx context.Context, n int) ([]byte, error) {
	s.mu.Lock()
	s.startPart(n)
	s.readAhead(n + 1)
	p := &s.parts[n]
	s.mu.Unlock()
	select {
	case <-p.ready:
		return p.data, p.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// readAhead requests part n if there is room for it. The caller holds mu.
func (s *Source) readAhead(n int) {
	if n < len(s.parts) && s.resident < maxResident && s.gaveUp == nil {
		s.startPart(n)
	}
}

// startPart reads a part, unless that has begun. The parts of a request are read in order. The caller
// holds mu.
func (s *Source) startPart(n int) {
	if s.parts[n].ready != nil {
		return
	}
	var before chan struct{}
	if n > 0 && s.selection.parts[n-1].request == s.selection.parts[n].request {
		s.startPart(n - 1)
		before = s.parts[n-1].ready
	}
	p := &s.parts[n]
	p.ready = make(chan struct{})
	s.resident++
	size := s.selection.parts[n].size
	var memory []byte
	if last := len(s.spare) - 1; last >= 0 {
		memory, s.spare = s.spare[last], s.spare[:last]
	}
	s.running.Go(func() {
		defer close(p.ready)
		if before != nil {
			<-before
		}
		if int64(cap(memory)) < size {
			memory = make([]byte, size, s.capacity(size))
		}
		data := memory[:size]
		if p.err = s.readPart(s.selection.parts[n], data); p.err == nil {
			p.data = data
		} else {
			s.giveUp(p.err)
		}
	})
}

// capacity returns how much memory a part takes. That of a full part fits every other part.
func (s *Source) capacity(size int64) int64 {
	if size < partSize {
		return size
	}
	return s.largest
}

// giveUp ends the making of chunks, except for those under way. A server that failed to send a part of the
// file is not asked for another one: each could take as long.
func (s *Source) giveUp(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gaveUp == nil && s.ctx.Err() == nil {
		s.gaveUp = err
	}
}

// Failure returns why the source made no more chunks before it was closed, or nil.
func (s *Source) Failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gaveUp
}

// releaseRow is called when a row of part n needs its payload no more. After the last row the part's
// memory is free for the next part.
func (s *Source) releaseRow(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &s.parts[n]
	if p.left--; p.left > 0 {
		return
	}
	if p.ready == nil { // its rows were wanted after the source had given up
		return
	}
	s.resident--
	select {
	case <-p.ready:
		if p.data != nil {
			s.spare, p.data = append(s.spare, p.data), nil
		}
	default: // the wait for it was cancelled
	}
	s.readAhead(n + 1)
}

// readPart fills p with a part of the file. The earlier parts of the request are read.
func (s *Source) readPart(at part, p []byte) error {
	f, filled := s.selection.file, int64(0)
	if at.offset < f.readEnd() {
		filled = int64(copy(p, f.ahead[at.offset-f.HeadSize():]))
	}
	for attempt := 1; filled < at.size; attempt++ {
		n, err := s.readStream(at.request, at.offset+filled, p[filled:])
		filled += int64(n)
		switch {
		case err == nil:
		case attempt == maxAttempts || f.whole != nil || !errors.Is(err, store.ErrUnavailable):
			return err
		default:
			if err := store.Sleep(s.ctx, store.Backoff{First: 250 * time.Millisecond, Max: time.Second}.Wait(attempt)); err != nil {
				return err
			}
		}
	}
	return nil
}

// readStream fills p with the bytes of a request from offset off of the file on. After an error it returns
// how many bytes are read; then the rest of the request is requested anew.
func (s *Source) readStream(q int, off int64, p []byte) (n int, err error) {
	f, end := s.selection.file, s.selection.requests[q].end
	if s.streams[q] == nil {
		if s.streams[q], err = f.startPayloads(s.ctx, off, end); err != nil {
			return 0, err
		}
	}
	stream := s.streams[q]
	if _, err = io.CopyN(io.Discard, stream, off-stream.position); err == nil {
		n, err = io.ReadFull(stream, p)
	}
	stream.position = off + int64(n)
	if err != nil || stream.position == end {
		stream.close()
		s.streams[q] = nil
	}
	return n, err
}

// checkPart checks that an answer to a request for payloads begins at off of this file.
func (f *File) checkPart(part store.Part, off int64) error {
	switch {
	case part.Offset != off || part.Whole && off > 0:
		return errNoRanges
	case part.Size >= 0 && part.Size != f.FileSize():
		return fmt.Errorf("%w: it has %d bytes instead of %d", delta.ErrInvalid, part.Size, f.FileSize())
	}
	return nil
}

// startPayloads requests the bytes of the file from offset off on, up to end.
func (f *File) startPayloads(ctx context.Context, off, end int64) (*stream, error) {
	if f.whole != nil {
		f.whole.position = f.readEnd()
		return f.whole, nil
	}
	s, err := f.startStream(ctx, off, end-off)
	if err != nil {
		return nil, err
	}
	if err := f.checkPart(s.part, off); err != nil {
		s.close()
		return nil, err
	}
	s.position = off
	return s, nil
}
