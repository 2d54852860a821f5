// Package apply makes chunks of a new image from a delta and bytes of the old image. It selects what a
// job uses of a delta, reads those parts of its file, and decodes. It does not know where the file lies,
// or which seeds hold the old image. Every chunk is hashed: a stale, damaged or hostile delta, or another
// old image, costs bytes, and never gives a wrong one.
package apply

import (
	"cairn/blob/delta"
)

// Tests lower these.
var (
	// requestSize is the least size of a request for payloads, unless fewer bytes are left or a gap follows.
	requestSize int64 = 4 << 20
	// partSize is the least size of a part, unless its request ends or a gap follows.
	partSize int64 = 2 << 20
	// maxGap is the largest gap between two payloads of a part. The bytes in it are read and dropped.
	maxGap int64 = 64 << 10
	// smallFile is the largest file that is read whole with the first request.
	smallFile int64 = 512 << 10
)

// Selection is the part of a delta that a job uses: some of its rows, and the parts of its file with
// their payloads. It is immutable.
type Selection struct {
	file     *File
	requests []request
	parts    []part
	rows     []selected // in the order of the chunks
}

// request is a range of a delta's file that is requested at once.
type request struct{ offset, end int64 }

// part is a run of bytes of a request that is in memory at once, from the first payload of its rows to the
// last.
type part struct {
	offset, size int64
	request      int
	rows         int // number of them
}

func (p part) end() int64 { return p.offset + p.size }

// selected is a row of a selection.
type selected struct{ chunk, row, part uint32 }

// Select selects the rows of f whose chunks are wanted and whose ranges of the old image are held. It
// leaves out rows that would cost more bytes than the store: their payloads have too many unused bytes
// between them.
func Select(f *File, wanted func(chunk int) bool, held func(r delta.Range) bool) *Selection {
	s := &Selection{file: f}
	var stored []int64 // bytes of the chunks of each request in the store
	for n, row := range f.All() {
		if row.Kind != delta.Frame || !wanted(row.Chunk) || !holdsAll(row.Ranges, held) {
			continue
		}
		s.addRow(n, row)
		if len(stored) < len(s.requests) {
			stored = append(stored, 0)
		}
		stored[len(stored)-1] += row.Stored
	}
	s.dropCostly(stored)
	return s
}

// addRow adds a row, which follows the last one in the file. A file that comes as a whole is one request.
func (s *Selection) addRow(n int, row delta.Row) {
	gap := false
	if last := len(s.parts) - 1; last >= 0 {
		gap = row.Offset-s.parts[last].end() > maxGap
	}
	last := len(s.requests) - 1
	switch {
	case s.file.whole != nil && last < 0:
		s.requests = append(s.requests, request{offset: s.file.readEnd()})
	case s.file.whole == nil && (last < 0 || gap || s.requests[last].end-s.requests[last].offset >= requestSize):
		s.requests = append(s.requests, request{offset: row.Offset})
	}
	q := len(s.requests) - 1
	last = len(s.parts) - 1
	if last < 0 || gap || s.parts[last].request != q || s.parts[last].size >= partSize {
		s.parts = append(s.parts, part{offset: row.Offset, request: q})
		last++
	}
	p := &s.parts[last]
	p.size = row.Offset + row.Size - p.offset
	p.rows++
	s.requests[q].end = p.end()
	s.rows = append(s.rows, selected{uint32(row.Chunk), uint32(n), uint32(last)})
}

func holdsAll(ranges []delta.Range, held func(r delta.Range) bool) bool {
	for _, r := range ranges {
		if !held(r) {
			return false
		}
	}
	return true
}

// dropCostly drops the requests that have more bytes than their chunks in the store.
func (s *Selection) dropCostly(stored []int64) {
	all := *s
	s.requests, s.parts, s.rows = nil, nil, nil
	requests, parts := make([]int, len(all.requests)), make([]int, len(all.parts)) // new numbers, or -1
	for i, q := range all.requests {
		requests[i] = -1
		if s.file.missing(q) < stored[i] {
			requests[i] = len(s.requests)
			s.requests = append(s.requests, q)
		}
	}
	for i, p := range all.parts {
		parts[i] = -1
		if p.request = requests[p.request]; p.request >= 0 {
			parts[i] = len(s.parts)
			s.parts = append(s.parts, p)
		}
	}
	for _, r := range all.rows {
		if n := parts[r.part]; n >= 0 {
			r.part = uint32(n)
			s.rows = append(s.rows, r)
		}
	}
}

// Len returns the number of selected rows.
func (s *Selection) Len() int { return len(s.rows) }

// Has reports whether a row of the chunk is selected.
func (s *Selection) Has(chunk int) bool {
	_, ok := s.find(chunk)
	return ok
}

// Size returns the size of a selected chunk's payload in bytes, or 0 if no row of it is selected.
func (s *Selection) Size(chunk int) int64 {
	at, ok := s.find(chunk)
	if !ok {
		return 0
	}
	return s.file.Row(int(s.rows[at].row)).Size
}

// Bytes returns how many bytes of the delta's file are still to be read.
func (s *Selection) Bytes() (n int64) {
	for _, q := range s.requests {
		n += s.file.missing(q)
	}
	return n
}

// Requests returns how many requests these bytes take.
func (s *Selection) Requests() (n int) {
	for _, q := range s.requests {
		if s.file.whole == nil && s.file.missing(q) > 0 {
			n++
		}
	}
	return n
}

// CountRequests returns how many requests a job takes to read all of a delta's file, whose sizes are known.
func CountRequests(s Sizes) int {
	if s.File <= smallFile {
		return 1
	}
	return 1 + int((s.File-s.Head+partSize-1)/partSize)
}
