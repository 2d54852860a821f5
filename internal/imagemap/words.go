package imagemap

import (
	"fmt"
	"html/template"

	"github.com/dustin/go-humanize"

	"cairn/internal/plaintext"
)

// The limits of texts from the caller, in runes.
const (
	maxTitle = 200
	maxName  = 80
)

// newPageView formats a survey for the template.
func newPageView(p Page, s *survey) pageView {
	return pageView{
		Style: template.CSS(pageCSS), StyleHash: policyHash(pageCSS),
		Script: template.JS(pageJS), ScriptHash: policyHash(pageJS),
		Title:   plaintext.Clean(p.Title, maxTitle),
		Figures: s.figureList(), Sources: s.sourceRows(p.Seeds), Downloads: s.downloadRows(),
		Map: s.newChart(), Bar: drawBar(&s.bytes), BarView: viewBox(barHeight),
	}
}

func (s *survey) figureList() []figure {
	get, made := s.bytes[classDownload], s.bytes[classDelta]
	rest := s.size - get - made
	var all []figure
	if s.stored != unknown {
		chunks := int64(s.chunks[classDownload] + s.chunks[classDelta])
		all = append(all, figure{"To download", plaintext.Size(s.stored), plaintext.Count(chunks, "chunk") + ", as stored"})
	}
	all = append(all, figure{"From the store", plaintext.Size(get), plaintext.Percent(get, s.size) + " of the image"})
	if made > 0 {
		all = append(all, figure{"From a delta", plaintext.Size(made), plaintext.Percent(made, s.size) + " of the image"})
	}
	return append(all,
		figure{"Needs no download", plaintext.Size(rest), plaintext.Percent(rest, s.size) + " of the image"},
		figure{"Image", plaintext.Size(s.size), humanize.Comma(s.size) + " bytes"})
}

// sourceRows returns the rows of the totals. Seeds and downloads always have a row, other classes only if they have
// chunks.
func (s *survey) sourceRows(seeds []string) []source {
	var rows []source
	for k := range classes {
		name := className(k, seeds)
		always := k == classDownload || k >= classSeed && k < classRepeat
		if name == "" || s.chunks[k] == 0 && !always {
			continue
		}
		n := s.bytes[k]
		rows = append(rows, source{k, name, plaintext.Size(n), plaintext.Percent(n, s.size), humanize.Comma(int64(s.chunks[k]))})
	}
	return rows
}

// className returns the name of a class in the page, or "" if the class has no seed.
func className(k class, seeds []string) string {
	switch k {
	case classInPlace:
		return "in place"
	case classRepeat:
		return "repeats"
	case classZero:
		return "zeros"
	case classDelta:
		return "from a delta"
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

func (s *survey) downloadRows() []download {
	var rows []download
	for _, m := range s.misses {
		d := download{
			First: m.offset / s.cellSize, Last: (m.offset + m.size - 1) / s.cellSize,
			Offset: plaintext.Size(m.offset), Byte: humanize.Comma(m.offset),
			Size: plaintext.Size(m.size), Chunks: humanize.Comma(int64(m.chunks)), Stored: "unknown",
		}
		if m.stored != unknown {
			d.Stored = plaintext.Size(m.stored)
		}
		rows = append(rows, d)
	}
	return rows
}

func (s *survey) newChart() chart {
	rows := (len(s.cells) + columns - 1) / columns
	c := chart{
		Shapes: drawMap(s.cells), Grid: drawGrid(rows),
		Columns: columns, Width: cellWidth, Height: cellHeight, View: viewBox(rows * cellHeight),
		Cells: encodeCells(s.cells), Bytes: s.size, CellBytes: s.cellSize,
		Count: humanize.Comma(int64(len(s.cells))), OneCell: plaintext.Size(s.cellSize),
	}
	const step = 4 // rows from one label to the next
	for row := 0; row < rows; row += step {
		c.Labels = append(c.Labels, label{row*cellHeight + cellHeight/2, plaintext.Size(int64(row) * columns * s.cellSize)})
	}
	return c
}

// viewBox returns a view as wide as the map, with space for the labels on its left and for a thick outline.
func viewBox(height int) string {
	const labels, line = 64, 1
	return fmt.Sprintf("%d %d %d %d", -labels, -line, labels+barUnits+line, height+2*line)
}
