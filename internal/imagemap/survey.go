package imagemap

import (
	"cmp"
	"fmt"
	"slices"

	"cairn/seed"
)

const (
	columns   = 128 // cells in a row of the map
	maxCells  = 32 * columns
	minCell   = 4 << 10 // bytes of the image in a cell, at least; a power of two
	maxMisses = 10
)

// class is a row of the totals and a colour of the map: a seed.Kind other than Local, a seed, or the last seeds
// together.
type class int

const (
	classInPlace  class = iota
	classSeed           // the first of seedClasses
	classRepeat   = classSeed + seedClasses
	classZero     = classRepeat + 1
	classDelta    = classZero + 1
	classDownload = classDelta + 1
	classes       = classDownload + 1

	seedClasses = 4
)

// seedClass returns the class of a seed, given the number of all seeds.
func seedClass(number, seeds int) class {
	if seeds > seedClasses {
		return classSeed + class(min(number, seedClasses-1))
	}
	return classSeed + class(number)
}

// amounts holds a number of bytes for each class.
type amounts [classes]int64

func (a *amounts) sum() (sum int64) {
	for _, n := range a {
		sum += n
	}
	return sum
}

// miss is a run of adjacent chunks to download.
type miss struct {
	offset, size int64
	chunks       int
	stored       int64 // bytes in the store, or unknown
}

// unknown is the stored size of chunks if that of any of them is not known.
const unknown = -1

// survey is the summary of an image's chunks.
type survey struct {
	size     int64
	cellSize int64     // bytes of the image in a cell, a power of two
	cells    []amounts // the last cell may hold less than cellSize
	bytes    amounts
	chunks   [classes]int
	stored   int64  // bytes in the store of all downloads, or unknown
	misses   []miss // the largest ones, in descending order of size
}

// surveyPage returns the survey of p's chunks.
func surveyPage(p Page) (*survey, error) {
	s := newSurvey(p.Size)
	var offset int64
	var open miss // the run of downloads that ends at offset
	for c := range p.Chunks {
		if err := checkChunk(c, len(p.Seeds), p.Size-offset); err != nil {
			return nil, fmt.Errorf("chunk at offset %d: %w", offset, err)
		}
		s.addChunk(offset, c, len(p.Seeds))
		if c.Kind != seed.Fetch {
			s.addMiss(open)
			open = miss{offset: offset + c.Size}
		} else {
			open.addChunk(c)
		}
		offset += c.Size
	}
	s.addMiss(open)
	if offset != p.Size {
		return nil, fmt.Errorf("the chunks end at %d of %d bytes", offset, p.Size)
	}
	return s, nil
}

func checkChunk(c Chunk, seeds int, left int64) error {
	switch {
	case c.Size < 1 || c.Size > left:
		return fmt.Errorf("size %d, with %d bytes left of the image", c.Size, left)
	case c.Kind > seed.InPlace:
		return fmt.Errorf("unknown kind %d", c.Kind)
	case c.Kind == seed.Local && (c.Seed < 0 || c.Seed >= seeds):
		return fmt.Errorf("seed %d of %d", c.Seed, seeds)
	case c.Stored < 0:
		return fmt.Errorf("stored size %d", c.Stored)
	}
	return nil
}

func newSurvey(size int64) *survey {
	s := &survey{size: size, cellSize: minCell}
	if size <= 0 {
		return s
	}
	for (size-1)/s.cellSize >= maxCells {
		s.cellSize *= 2
	}
	s.cells = make([]amounts, (size-1)/s.cellSize+1)
	return s
}

func (c Chunk) classOf(seeds int) class {
	switch c.Kind {
	case seed.Local:
		return seedClass(c.Seed, seeds)
	case seed.Copy:
		return classRepeat
	case seed.Zero:
		return classZero
	case seed.Delta:
		return classDelta
	case seed.Fetch:
		return classDownload
	}
	return classInPlace
}

func (s *survey) addChunk(offset int64, c Chunk, seeds int) {
	k := c.classOf(seeds)
	s.bytes[k] += c.Size
	s.chunks[k]++
	if k == classDownload || k == classDelta {
		s.stored = addStored(s.stored, c.Stored)
	}
	for left := c.Size; left > 0; {
		n := min(left, s.cellSize-offset%s.cellSize)
		s.cells[offset/s.cellSize][k] += n
		offset += n
		left -= n
	}
}

func (m *miss) addChunk(c Chunk) {
	m.size += c.Size
	m.chunks++
	m.stored = addStored(m.stored, c.Stored)
}

func addStored(sum, n int64) int64 {
	if sum == unknown || n == 0 || sum+n < 0 {
		return unknown
	}
	return sum + n
}

// addMiss adds m if it is one of the largest.
func (s *survey) addMiss(m miss) {
	if m.size == 0 {
		return
	}
	at, _ := slices.BinarySearchFunc(s.misses, m, func(a, b miss) int {
		return cmp.Or(cmp.Compare(b.size, a.size), cmp.Compare(a.offset, b.offset))
	})
	if at == maxMisses {
		return
	}
	s.misses = slices.Insert(s.misses, at, m)
	s.misses = s.misses[:min(len(s.misses), maxMisses)]
}
