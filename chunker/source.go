package chunker

import (
	"errors"
	"fmt"
	"io"
)

// Source is an image to be cut, handed out to workers in consecutive segments. FromReaderAt and
// FromReader make one. A Source is used once.
type Source struct {
	next   int64 // offset of the next segment
	done   bool
	stream io.Reader    // or
	at     io.ReaderAt  // with
	size   int64        // bytes, and
	sparse Sparse       // when at knows its holes
	before [window]byte // the last bytes of the stream so far
}

// Sparse is an image that knows where it has holes.
type Sparse interface {
	// NextData is the first run of data [start, end) at or behind off. Bytes outside of runs read as
	// zero. When only a hole is left, start = end = the image's size.
	NextData(off int64) (start, end int64, err error)
}

// FromReaderAt is the image in the first size bytes of r, read by all workers at once. Holes are not
// read when r is Sparse. Fewer than size bytes are an error.
func FromReaderAt(r io.ReaderAt, size int64) *Source {
	sparse, _ := r.(Sparse)
	return &Source{at: r, size: size, sparse: sparse}
}

// FromReader is the image in all of r, read in order.
func FromReader(r io.Reader) *Source { return &Source{stream: r, size: -1} }

// segment is a run of the image for one worker.
type segment struct {
	offset int64
	size   int64 // bytes
	hole   bool  // all zero, and not read
	last   bool
	read   bool // the bytes are in the worker's buffer already
}

const (
	minHole    = 1 << 20 // bytes; smaller holes are read like data, to keep segments large
	holeChunks = 1 << 14 // largest chunks; larger holes are several segments, to bound what a worker hands on
)

// take hands out the next segment of at most len(data) bytes, or a hole of at most maxHole; no holes are
// looked for when that is 0. One caller at a
// time: a stream is read here, and the window before the segment put into before; the rest is left to fill.
func (s *Source) take(before, data []byte, maxHole int64) (segment, bool, error) {
	if s.done {
		return segment{}, false, nil
	}
	seg := segment{offset: s.next}
	var err error
	if s.stream != nil {
		err = s.readStream(&seg, before, data)
	} else {
		err = s.plan(&seg, int64(len(data)), maxHole)
	}
	s.next += seg.size
	s.done = seg.last || err != nil
	return seg, err == nil, err
}

func (s *Source) readStream(seg *segment, before, data []byte) error {
	n, ended, err := fillUp(s.stream, data)
	seg.last = ended
	if err != nil {
		return fmt.Errorf("reading the image at %d: %w", seg.offset+int64(n), err)
	}
	seg.size, seg.read = int64(n), true
	copy(before, s.before[:])
	if n >= window {
		copy(s.before[:], data[n-window:n])
	}
	return nil
}

// fillUp reads until data is full or the stream has ended. io.ReadFull does not tell that from a stream that says of
// itself that it was cut off.
func fillUp(r io.Reader, data []byte) (n int, ended bool, err error) {
	for n < len(data) {
		k, err := r.Read(data[n:])
		n += k
		if err == io.EOF {
			return n, true, nil
		}
		if err != nil {
			return n, false, err
		}
	}
	return n, false, nil
}

// plan chooses a segment: the rest of a hole, or data up to the next large hole.
func (s *Source) plan(seg *segment, most, maxHole int64) error {
	rest := s.size - seg.offset
	seg.size = min(rest, most)
	if s.sparse != nil && maxHole > 0 && rest > 0 {
		start, end, err := s.sparse.NextData(seg.offset)
		if err != nil {
			return fmt.Errorf("looking for holes at %d: %w", seg.offset, err)
		}
		start, end = min(start, s.size), min(end, s.size)
		if hole := start - seg.offset; hole >= minHole && maxHole >= minHole {
			seg.hole, seg.size = true, min(hole, maxHole)
		} else if run := end - seg.offset; end < s.size && run >= minHole {
			seg.size = min(seg.size, run)
		}
	}
	seg.last = seg.offset+seg.size == s.size
	return nil
}

// fill reads a segment that take left unread, and the window before it.
func (s *Source) fill(seg segment, before, data []byte) error {
	if seg.read {
		return nil
	}
	if seg.hole {
		clear(data)
		return s.readBefore(seg, before)
	}
	if err := s.readBefore(seg, before); err != nil {
		return err
	}
	return s.readAt(data[:seg.size], seg.offset)
}

func (s *Source) readBefore(seg segment, before []byte) error {
	if seg.offset < window {
		return nil // only the first segment, where no window is whole
	}
	return s.readAt(before, seg.offset-window)
}

func (s *Source) readAt(p []byte, off int64) error {
	n, err := s.at.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("the image ended at %d of %d bytes: it shrank while it was read", off+int64(n), s.size)
	}
	return fmt.Errorf("reading the image at %d: %w", off+int64(n), err)
}
