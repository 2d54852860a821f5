package imagemap

import (
	"fmt"
	"html/template"

	"github.com/dustin/go-humanize"

	"cairn/internal/plaintext"
)

// How much of a text from outside is shown, in runes.
const (
	maxTitle = 200
	maxName  = 80
)

// show puts what was found into words.
func show(p Page, s *survey) view {
	return view{
		Style: template.CSS(pageCSS), StyleHash: hash(pageCSS),
		Script: template.JS(pageJS), ScriptHash: hash(pageJS),
		Title:   plaintext.Clean(p.Title, maxTitle),
		Figures: s.figures(), Sources: s.sources(p.Seeds), Downloads: s.downloads(),
		Map: s.chart(), Bar: drawBar(&s.bytes), BarView: viewBox(barHeight),
	}
}

func (s *survey) figures() []figure {
	get := s.bytes[classDownload]
	rest := s.size - get
	var all []figure
	if s.stored != unknown {
		all = append(all, figure{"To download", size(s.stored), chunks(s.chunks[classDownload]) + ", as stored"})
	}
	return append(all,
		figure{"From the store", size(get), plaintext.Percent(get, s.size) + " of the image"},
		figure{"Needs no download", size(rest), plaintext.Percent(rest, s.size) + " of the image"},
		figure{"Image", size(s.size), humanize.Comma(s.size) + " bytes"})
}

// sources are the rows of totals: of every seed and of downloads always, of others if there are any.
func (s *survey) sources(seeds []string) []source {
	var rows []source
	for k := range classes {
		name := className(k, seeds)
		always := k == classDownload || k >= classSeed && k < classRepeat
		if name == "" || s.chunks[k] == 0 && !always {
			continue
		}
		n := s.bytes[k]
		rows = append(rows, source{k, name, size(n), plaintext.Percent(n, s.size), humanize.Comma(int64(s.chunks[k]))})
	}
	return rows
}

// className is what the page calls a class, or nothing when it stands for no seed.
func className(k class, seeds []string) string {
	switch k {
	case classInPlace:
		return "in place"
	case classRepeat:
		return "repeats"
	case classZero:
		return "zeros"
	case classDownload:
		return "from the store"
	}
	i := int(k - classSeed)
	switch {
	case i >= len(seeds):
		return ""
	case len(seeds) > seedClasses && i == seedClasses-1:
		return fmt.Sprintf("from %d other seeds", len(seeds)-i)
	}
	return "from " + plaintext.Clean(seeds[i], maxName)
}

func (s *survey) downloads() []download {
	var rows []download
	for _, m := range s.misses {
		d := download{
			First: m.offset / s.cellSize, Last: (m.offset + m.size - 1) / s.cellSize,
			Offset: size(m.offset), Byte: humanize.Comma(m.offset),
			Size: size(m.size), Chunks: humanize.Comma(int64(m.chunks)), Stored: "unknown",
		}
		if m.stored != unknown {
			d.Stored = size(m.stored)
		}
		rows = append(rows, d)
	}
	return rows
}

func (s *survey) chart() chart {
	rows := (len(s.cells) + columns - 1) / columns
	c := chart{
		Shapes: drawMap(s.cells), Grid: drawGrid(rows),
		Columns: columns, Width: cellWidth, Height: cellHeight, View: viewBox(rows * cellHeight),
		Cells: encode(s.cells), Bytes: s.size, CellBytes: s.cellSize,
		Count: humanize.Comma(int64(len(s.cells))), OneCell: size(s.cellSize),
	}
	const step = 4 // rows from one label to the next
	for row := 0; row < rows; row += step {
		c.Labels = append(c.Labels, label{row*cellHeight + cellHeight/2, size(int64(row) * columns * s.cellSize)})
	}
	return c
}

// viewBox is as much as the map is wide, with the labels to its left and room for a thick line around it.
func viewBox(height int) string {
	const labels, line = 64, 1
	return fmt.Sprintf("%d %d %d %d", -labels, -line, labels+barUnits+line, height+2*line)
}

// size is a number of bytes for people.
func size(n int64) string { return humanize.IBytes(uint64(n)) }

func chunks(n int) string {
	if n == 1 {
		return "1 chunk"
	}
	return humanize.Comma(int64(n)) + " chunks"
}
