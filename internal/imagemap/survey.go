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
	minCell   = 4 << 10 // bytes
	maxMisses = 10
)

// class is a source as the page tells it apart: a kind, or one of the seeds that have their own colour.
type class int

const (
	classInPlace  class = iota
	classSeed           // the first of seedClasses
	classRepeat   = classSeed + seedClasses
	classZero     = classRepeat + 1
	classDownload = classZero + 1
	classes       = classDownload + 1

	seedClasses = 4
)

// seedClass is the class of a seed, of which there are seeds.
func seedClass(number, seeds int) class {
	if seeds > seedClasses {
		return classSeed + class(min(number, seedClasses-1))
	}
	return classSeed + class(number)
}

// amounts are bytes by class.
type amounts [classes]int64

func (a *amounts) sum() (sum int64) {
	for _, n := range a {
		sum += n
	}
	return sum
}

// miss is a run of chunks to download that follow one another.
type miss struct {
	offset, size int64
	chunks       int
	stored       int64 // bytes in the store, or unknown
}

// unknown is the stored size of what holds a chunk whose stored size is not known.
const unknown = -1

// survey is what the chunks of an image come to.
type survey struct {
	size     int64
	cellSize int64     // bytes of the image that a cell of the map stands for, a power of two
	cells    []amounts // the last one may stand for fewer bytes
	bytes    amounts
	chunks   [classes]int
	stored   int64  // of all downloads, or unknown
	misses   []miss // the largest, in falling order
}

// look goes through the chunks of p.
func look(p Page) (*survey, error) {
	s := newSurvey(p.Size)
	var offset int64
	var open miss // the run of downloads that ends at offset
	for c := range p.Chunks {
		if err := check(c, len(p.Seeds), p.Size-offset); err != nil {
			return nil, fmt.Errorf("chunk at offset %d: %w", offset, err)
		}
		s.add(offset, c, len(p.Seeds))
		if c.Kind != seed.Fetch {
			s.keep(open)
			open = miss{offset: offset + c.Size}
		} else {
			open.add(c)
		}
		offset += c.Size
	}
	s.keep(open)
	if offset != p.Size {
		return nil, fmt.Errorf("the chunks end at %d of %d bytes", offset, p.Size)
	}
	return s, nil
}

func check(c Chunk, seeds int, left int64) error {
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

func (c Chunk) class(seeds int) class {
	switch c.Kind {
	case seed.Local:
		return seedClass(c.Seed, seeds)
	case seed.Copy:
		return classRepeat
	case seed.Zero:
		return classZero
	case seed.Fetch:
		return classDownload
	}
	return classInPlace
}

func (s *survey) add(offset int64, c Chunk, seeds int) {
	k := c.class(seeds)
	s.bytes[k] += c.Size
	s.chunks[k]++
	if k == classDownload {
		s.stored = addStored(s.stored, c.Stored)
	}
	for left := c.Size; left > 0; {
		n := min(left, s.cellSize-offset%s.cellSize)
		s.cells[offset/s.cellSize][k] += n
		offset += n
		left -= n
	}
}

func (m *miss) add(c Chunk) {
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

// keep takes m in if it is one of the largest so far.
func (s *survey) keep(m miss) {
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
