package imagemap

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
)

// The size of a cell in units of the drawing. A cell is divided by height. A part of one unit would be hard to see
// between the grid lines.
const (
	cellWidth  = 8
	cellHeight = 12
	minPart    = 2
)

// The size of the bar of totals, which is as wide as the map, in units of the drawing.
const (
	barUnits  = columns * cellWidth
	barHeight = 24
)

// part is the part of a cell, or of the bar, that shows one class.
type part struct {
	class class
	units int
}

// splitUnits divides units among some classes in proportion to their bytes, with at least minPart for each. The
// classes must be sorted by size, the largest first. The parts are sorted by class.
func (a *amounts) splitUnits(units int, among []class) []part {
	var sum int64
	for _, k := range among {
		sum += a[k]
	}
	var parts []part
	left := units
	for _, k := range among[1:] {
		n := max(minPart, int(float64(units)*float64(a[k])/float64(sum)))
		parts = append(parts, part{k, n})
		left -= n
	}
	parts = append(parts, part{among[0], left})
	slices.SortFunc(parts, func(x, y part) int { return cmp.Compare(x.class, y.class) })
	return parts
}

// presentClasses returns the classes with bytes, the largest first.
func (a *amounts) presentClasses() []class {
	var all []class
	for k, n := range a {
		if n > 0 {
			all = append(all, class(k))
		}
	}
	slices.SortStableFunc(all, func(x, y class) int { return cmp.Compare(a[y], a[x]) })
	return all
}

// shownClasses returns the classes that a cell shows: the two largest, and downloads of any size.
func (a *amounts) shownClasses() []class {
	all := a.presentClasses()
	most := min(2, len(all))
	shown := slices.Clone(all[:most])
	if slices.Contains(all[most:], classDownload) {
		shown = append(shown, classDownload)
	}
	return shown
}

// rect is a rectangle in units of the drawing.
type rect struct{ x, y, w, h int }

// pathBuilder builds the data of an SVG path from rectangles. It merges horizontally adjacent ones.
type pathBuilder struct {
	path []byte
	last rect // not in path yet, since the next rectangle may extend it
}

func (b *pathBuilder) addRect(r rect) {
	if b.last.x+b.last.w == r.x && b.last.y == r.y && b.last.h == r.h {
		b.last.w += r.w
		return
	}
	b.flushRect()
	b.last = r
}

func (b *pathBuilder) flushRect() {
	if b.last.w > 0 {
		b.path = fmt.Appendf(b.path, "M%d %dh%dv%dh-%dz", b.last.x, b.last.y, b.last.w, b.last.h, b.last.w)
	}
	b.last = rect{}
}

// shape is the SVG path of all rectangles of a class.
type shape struct {
	Class class
	Path  string
}

func shapesOf(paths *[classes]pathBuilder) []shape {
	var all []shape
	for k := range paths {
		b := &paths[k]
		b.flushRect()
		if len(b.path) > 0 {
			all = append(all, shape{class(k), string(b.path)})
		}
	}
	return all
}

// drawMap draws the cells in rows. In a cell, the classes that are more costly to get are further down.
func drawMap(cells []amounts) []shape {
	var paths [classes]pathBuilder
	for i := range cells {
		x, y := i%columns*cellWidth, i/columns*cellHeight
		for _, part := range cells[i].splitUnits(cellHeight, cells[i].shownClasses()) {
			paths[part.class].addRect(rect{x, y, cellWidth, part.units})
			y += part.units
		}
	}
	return shapesOf(&paths)
}

// drawBar draws the totals side by side.
func drawBar(a *amounts) []shape {
	among := a.presentClasses()
	if len(among) == 0 {
		return nil
	}
	var paths [classes]pathBuilder
	x := 0
	for _, part := range a.splitUnits(barUnits, among) {
		paths[part.class].addRect(rect{x, 0, part.units, barHeight})
		x += part.units
	}
	return shapesOf(&paths)
}

// drawGrid draws the lines between the cells of some rows.
func drawGrid(rows int) string {
	var p []byte
	for i := 1; i < columns; i++ {
		p = fmt.Appendf(p, "M%d 0v%d", i*cellWidth, rows*cellHeight)
	}
	for i := 1; i < rows; i++ {
		p = fmt.Appendf(p, "M0 %dh%d", i*cellHeight, barUnits)
	}
	return string(p)
}

// encodeCells encodes the cells for page.js, separated by commas. A cell has a letter for each class, the largest
// class first. If there are several classes, a percentage follows each letter.
func encodeCells(cells []amounts) string {
	var text []byte
	for i := range cells {
		if i > 0 {
			text = append(text, ',')
		}
		all, sum := cells[i].presentClasses(), float64(cells[i].sum())
		for _, k := range all {
			text = append(text, 'a'+byte(k))
			if len(all) > 1 {
				text = strconv.AppendInt(text, int64(100*float64(cells[i][k])/sum), 10)
			}
		}
	}
	return string(text)
}
