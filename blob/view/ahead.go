package view

import (
	"sync"

	"cairn/blob"
)

const (
	firstAhead = 128 << 10 // bytes that are read ahead at first
	leastPitch = 512 << 10 // and at most, on a link that holds little
	maxAhead   = 4 << 20   // and on any
)

// readAhead finds reads that follow each other, and says what to fetch before it is asked for. It is told of
// the reads that miss something, and of the first read of each chunk that was fetched ahead: so it goes on before a
// reader comes to the end of that.
type readAhead struct {
	index *blob.Index
	most  int64 // bytes to read ahead, on any link

	mu      sync.Mutex // guards what follows
	streams [8]stream
	oldest  int // where the next new stream goes
}

// stream is a run of reads, each of which begins where another ended, or in what that brought with it.
type stream struct {
	last   int64 // where the furthest read begins
	ahead  int64 // the end of the chunks that were fetched; 0 when there is no stream
	window int64 // bytes to read ahead; 0 before the second read
}

// next takes note of a read of n bytes at off, which is not empty, and returns from where to where to read
// ahead, at most so far: nothing when from is not less than to.
func (a *readAhead) next(off, n, most int64) (from, to int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.find(off)
	if s == nil {
		a.streams[a.oldest] = stream{last: off, ahead: a.chunkEnd(off + n)}
		a.oldest = (a.oldest + 1) % len(a.streams)
		return 0, 0
	}
	if off <= s.last && s.window > 0 {
		return 0, 0 // it was here before: another reader, or the same
	}
	s.last = max(s.last, off)
	s.window = min(max(2*s.window, firstAhead), most, a.most)
	from = max(s.ahead, a.chunkEnd(off+n))
	to = min(off+n+s.window, a.index.Size())
	if to-from < s.window/2 && to < a.index.Size() {
		return 0, 0
	}
	s.ahead = max(from, a.chunkEnd(to))
	return from, to
}

// find is the stream that a read at off goes on with. A reader's requests come in any order, so that it may
// begin a little before the furthest one too.
func (a *readAhead) find(off int64) *stream {
	for i := range a.streams {
		if s := &a.streams[i]; s.last-s.window < off && off <= s.ahead {
			return s
		}
	}
	return nil
}

// chunkEnd is the end of the chunk that holds the byte before end.
func (a *readAhead) chunkEnd(end int64) int64 { return a.index.At(a.index.Find(end - 1)).End() }
