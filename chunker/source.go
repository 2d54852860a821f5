package chunker

import (
	"errors"
	"fmt"
	"io"
)

// Source is an image to cut, read in consecutive segments. FromReaderAt and FromReader return one. A
// Source is used once.
type Source struct {
	next   int64 // offset of the next segment
	done   bool
	stream io.Reader    // nil if at is set
	at     io.ReaderAt  // nil if stream is set
	size   int64        // of at, in bytes; -1 for a stream
	sparse Sparse       // at, if it knows its holes; else nil
	before [window]byte // the last bytes that were read from the stream
}

// Sparse is an image with known holes.
type Sparse interface {
	// NextData returns the first run of data [start, end) at or behind off. Bytes outside of runs read
	// as zeros. If only a hole is left, start = end = the image's size.
	NextData(off int64) (start, end int64, err error)
}

// FromReaderAt returns the image in the first size bytes of r. All workers read concurrently. If r is
// Sparse, its holes are not read. Fewer than size bytes are an error.
func FromReaderAt(r io.ReaderAt, size int64) *Source {
	sparse, _ := r.(Sparse)
	return &Source{at: r, size: size, sparse: sparse}
}

// FromReader returns the image in all of r, which is read in order.
func FromReader(r io.Reader) *Source { return &Source{stream: r, size: -1} }

// segment is a run of image bytes for one worker.
type segment struct {
	offset int64
	size   int64 // bytes
	hole   bool  // all zero, and not read
	last   bool
	read   bool // the bytes are in the worker's buffer already
}

const (
	minHole       = 1 << 20 // bytes; smaller holes are read like data, to keep segments large
	maxHoleChunks = 1 << 14 // chunks of the maximum size; larger holes are several segments, to bound the chunks of a batch
)

// nextSegment returns the next segment of at most len(data) bytes, or a hole of at most maxHole bytes.
// It looks for no holes if maxHole is 0. A segment of a stream is read into data, and the window before
// it into before; readSegment reads the others. It must not be called concurrently.
func (s *Source) nextSegment(before, data []byte, maxHole int64) (segment, bool, error) {
	if s.done {
		return segment{}, false, nil
	}
	seg := segment{offset: s.next}
	var err error
	if s.stream != nil {
		err = s.readStream(&seg, before, data)
	} else {
		err = s.planSegment(&seg, int64(len(data)), maxHole)
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

// fillUp reads until data is full or the stream ends. Unlike io.ReadFull, it returns an
// io.ErrUnexpectedEOF of the stream itself as an error.
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

// planSegment chooses the range of a segment: the rest of a hole, or data up to the next large hole.
func (s *Source) planSegment(seg *segment, most, maxHole int64) error {
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

// readSegment reads a segment that nextSegment left unread, and the window before it.
func (s *Source) readSegment(seg segment, before, data []byte) error {
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
		return nil // only the first segment, which has no whole window before it
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
