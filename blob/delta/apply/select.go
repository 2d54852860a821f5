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
	// partSize is the least size of a request for payloads, unless fewer bytes are left or a gap follows.
	partSize int64 = 2 << 20
	// maxGap is the largest gap between two payloads of a part. The bytes in it are read and dropped.
	maxGap int64 = 64 << 10
	// smallFile is the largest file that is read whole with the first request.
	smallFile int64 = 512 << 10
)

// Selection is the part of a delta that a job uses: some of its rows, and the parts of its file with
// their payloads. It is immutable.
type Selection struct {
	file  *File
	parts []part
	rows  []selected // in the order of the chunks
}

// part is a run of bytes of a delta's file, from the first payload of its rows to the last.
type part struct {
	offset, size int64
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
	stored := []int64{} // of the rows of each part
	for n, row := range f.All() {
		if row.Kind != delta.Frame || !wanted(row.Chunk) || !holdsAll(row.Ranges, held) {
			continue
		}
		last := len(s.parts) - 1
		if last < 0 || s.parts[last].size >= partSize || row.Offset-s.parts[last].end() > maxGap {
			s.parts = append(s.parts, part{offset: row.Offset})
			stored = append(stored, 0)
			last++
		}
		p := &s.parts[last]
		p.size = row.Offset + row.Size - p.offset
		p.rows++
		stored[last] += row.Stored
		s.rows = append(s.rows, selected{uint32(row.Chunk), uint32(n), uint32(last)})
	}
	if f.whole != nil {
		s.limitWhole(stored)
	} else {
		s.dropCostly(stored)
	}
	return s
}

func holdsAll(ranges []delta.Range, held func(r delta.Range) bool) bool {
	for _, r := range ranges {
		if !held(r) {
			return false
		}
	}
	return true
}

// limitWhole selects nothing if the bytes up to the last part are more than those of the chunks in the
// store.
func (s *Selection) limitWhole(stored []int64) {
	var all int64
	for _, n := range stored {
		all += n
	}
	if s.Bytes() >= all {
		s.parts, s.rows = nil, nil
	}
}

// dropCostly drops the parts that have more bytes than their chunks in the store.
func (s *Selection) dropCostly(stored []int64) {
	parts, rows, number := s.parts[:0], s.rows[:0], make([]int, len(s.parts))
	for i, p := range s.parts {
		number[i] = -1
		if s.file.missing(p) < stored[i] {
			number[i] = len(parts)
			parts = append(parts, p)
		}
	}
	for _, r := range s.rows {
		if n := number[r.part]; n >= 0 {
			r.part = uint32(n)
			rows = append(rows, r)
		}
	}
	s.parts, s.rows = parts, rows
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
	if s.file.whole != nil && len(s.parts) > 0 {
		return s.parts[len(s.parts)-1].end() - s.file.readEnd()
	}
	for _, p := range s.parts {
		n += s.file.missing(p)
	}
	return n
}

// Requests returns how many requests these bytes take.
func (s *Selection) Requests() (n int) {
	for _, p := range s.parts {
		if s.file.whole == nil && s.file.missing(p) > 0 {
			n++
		}
	}
	return n
}
