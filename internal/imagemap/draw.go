package imagemap

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
)

// A cell of the map in units of the drawing. It is split by height; of a part of one unit too little would be
// left between the lines.
const (
	cellWidth  = 8
	cellHeight = 12
	minPart    = 2
)

// The bar of totals, which is as wide as the map.
const (
	barUnits  = columns * cellWidth
	barHeight = 24
)

// slice is the part of a cell, or of the bar, that shows one class.
type slice struct {
	class class
	units int
}

// split divides so many units among some classes, given largest first, as a has bytes of them, but none gets
// less than can be seen. The parts are in the order of the classes.
func (a *amounts) split(units int, among []class) []slice {
	var sum int64
	for _, k := range among {
		sum += a[k]
	}
	var parts []slice
	left := units
	for _, k := range among[1:] {
		n := max(minPart, int(float64(units)*float64(a[k])/float64(sum)))
		parts = append(parts, slice{k, n})
		left -= n
	}
	parts = append(parts, slice{among[0], left})
	slices.SortFunc(parts, func(x, y slice) int { return cmp.Compare(x.class, y.class) })
	return parts
}

// present are the classes that a has bytes of, the largest first.
func (a *amounts) present() []class {
	var all []class
	for k, n := range a {
		if n > 0 {
			all = append(all, class(k))
		}
	}
	slices.SortStableFunc(all, func(x, y class) int { return cmp.Compare(a[y], a[x]) })
	return all
}

// shown are the classes that a cell is split among: the two largest, and downloads however small they are.
func (a *amounts) shown() []class {
	all := a.present()
	most := min(2, len(all))
	shown := slices.Clone(all[:most])
	if slices.Contains(all[most:], classDownload) {
		shown = append(shown, classDownload)
	}
	return shown
}

// rect is a rectangle in units of the drawing.
type rect struct{ x, y, w, h int }

// brush draws rectangles of one class, from left to right, as the data of an SVG path.
type brush struct {
	path []byte
	wet  rect // the last one, which the next may continue
}

func (b *brush) add(r rect) {
	if b.wet.x+b.wet.w == r.x && b.wet.y == r.y && b.wet.h == r.h {
		b.wet.w += r.w
		return
	}
	b.dry()
	b.wet = r
}

func (b *brush) dry() {
	if b.wet.w > 0 {
		b.path = fmt.Appendf(b.path, "M%d %dh%dv%dh-%dz", b.wet.x, b.wet.y, b.wet.w, b.wet.h, b.wet.w)
	}
	b.wet = rect{}
}

// shape is all that a drawing shows of a class.
type shape struct {
	Class class
	Path  string
}

func shapes(brushes *[classes]brush) []shape {
	var all []shape
	for k := range brushes {
		b := &brushes[k]
		b.dry()
		if len(b.path) > 0 {
			all = append(all, shape{class(k), string(b.path)})
		}
	}
	return all
}

// drawMap draws the cells in rows, each filled from below by what it takes most trouble to get.
func drawMap(cells []amounts) []shape {
	var brushes [classes]brush
	for i := range cells {
		x, y := i%columns*cellWidth, i/columns*cellHeight
		for _, part := range cells[i].split(cellHeight, cells[i].shown()) {
			brushes[part.class].add(rect{x, y, cellWidth, part.units})
			y += part.units
		}
	}
	return shapes(&brushes)
}

// drawBar draws the totals side by side.
func drawBar(a *amounts) []shape {
	among := a.present()
	if len(among) == 0 {
		return nil
	}
	var brushes [classes]brush
	x := 0
	for _, part := range a.split(barUnits, among) {
		brushes[part.class].add(rect{x, 0, part.units, barHeight})
		x += part.units
	}
	return shapes(&brushes)
}

// drawGrid draws the lines between the cells of so many rows.
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

// encode writes the cells for the page's script, with commas between them: of each the letters of its classes,
// the largest first, with their percentages unless there is but one.
func encode(cells []amounts) string {
	var text []byte
	for i := range cells {
		if i > 0 {
			text = append(text, ',')
		}
		text = cells[i].appendTo(text)
	}
	return string(text)
}

func (a *amounts) appendTo(text []byte) []byte {
	all := a.present()
	sum := float64(a.sum())
	for _, k := range all {
		text = append(text, 'a'+byte(k))
		if len(all) > 1 {
			text = strconv.AppendInt(text, int64(100*float64(a[k])/sum), 10)
		}
	}
	return text
}
