package view

import (
	"sync"

	"cairn/blob"
)

const (
	firstAhead    = 128 << 10 // bytes of a stream's first read-ahead
	minAheadLimit = 512 << 10 // limit of the read-ahead in bytes on a link with a small product
	maxAhead      = 4 << 20   // limit of the read-ahead in bytes on any link
)

// readAhead detects sequential reads and plans their read-ahead. It sees each ReadAt, and each first read of
// prefetched chunks, so the next read-ahead begins before the reader reaches the end of the last one.
type readAhead struct {
	index *blob.Index
	most  int64 // limit of the read-ahead in bytes, on any link

	mu      sync.Mutex // guards the fields below
	streams [8]stream
	oldest  int // index of the stream that the next new one replaces
}

// stream is a sequence of reads. Each read begins where an earlier one ended, or within the bytes read ahead of it.
type stream struct {
	last   int64 // offset of the furthest read
	ahead  int64 // end of the read-ahead; 0 if the stream is unused
	window int64 // bytes to read ahead; 0 before the second read
}

// noteRead records a read of n > 0 bytes at off. It returns the range to read ahead, of at most limit bytes; if from
// is not less than to, the range is empty.
func (a *readAhead) noteRead(off, n, limit int64) (from, to int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.findStream(off)
	if s == nil {
		a.streams[a.oldest] = stream{last: off, ahead: a.chunkEnd(off + n)}
		a.oldest = (a.oldest + 1) % len(a.streams)
		return 0, 0
	}
	if off <= s.last && s.window > 0 {
		return 0, 0 // the stream is already past this offset
	}
	s.last = max(s.last, off)
	s.window = min(max(2*s.window, firstAhead), limit, a.most)
	from = max(s.ahead, a.chunkEnd(off+n))
	to = min(off+n+s.window, a.index.Size())
	if to-from < s.window/2 && to < a.index.Size() {
		return 0, 0
	}
	s.ahead = max(from, a.chunkEnd(to))
	return from, to
}

// findStream returns the stream that a read at off continues, or nil. Requests of one reader may arrive out of order,
// so a read may also begin up to a window before the furthest read.
func (a *readAhead) findStream(off int64) *stream {
	for i := range a.streams {
		if s := &a.streams[i]; s.last-s.window < off && off <= s.ahead {
			return s
		}
	}
	return nil
}

// chunkEnd returns the end of the chunk that holds the byte before end.
func (a *readAhead) chunkEnd(end int64) int64 { return a.index.At(a.index.Find(end - 1)).End() }
