package main

import (
	"fmt"
	"html"
	"strings"
)

// bar is a line of a chart. A bar without a value is a heading.
type bar struct {
	label string
	value float64
	ours  bool
}

// chartOf draws a figure of every tool in each job, as multiples of the first tool's figure.
func chartOf(title string, samples []sample, figure func(cost) float64) string {
	var bars []bar
	for job, samples := range groupBy(samples, func(s sample) string { return s.Job }) {
		bars = append(bars, bar{label: job})
		var ours float64
		for tool, samples := range groupBy(samples, func(s sample) string { return s.Tool }) {
			value := figure(costOf(samples))
			if ours == 0 {
				ours = max(value, tick)
			}
			bars = append(bars, bar{tool, value / ours, strings.HasPrefix(tool, "cairn")})
		}
	}
	return drawChart(title, bars)
}

// Sizes in the drawing, in pixels.
const (
	lineHeight = 18
	labelWidth = 130
	barWidth   = 480 // of the longest
	valueWidth = 70
	margin     = 10
)

// cut is the value at which a bar is cut off, so that an outlier does not make all others alike. Its number is shown.
const cut = 12.0

// tick is the resolution of CPU time in seconds. A smaller value cannot be distinguished from 0.
const tick = 0.01

// drawChart returns an SVG that is readable on bright and dark pages, without style sheets and scripts.
func drawChart(title string, bars []bar) string {
	longest := 1.0
	for _, b := range bars {
		longest = max(longest, min(b.value, cut))
	}
	width, height := labelWidth+barWidth+valueWidth+2*margin, (len(bars)+2)*lineHeight+2*margin
	var s strings.Builder
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" `+
		`font-family="sans-serif" font-size="12">`+"\n", width, height, width, height)
	fmt.Fprintf(&s, `<rect x="0" y="0" width="%d" height="%d" fill="#fff"/>`+"\n", width, height)
	writeText(&s, margin, margin+lineHeight-5, "font-size=\"14\" font-weight=\"bold\"", title)
	for i, b := range bars {
		writeBar(&s, (i+2)*lineHeight+margin, b, barWidth/longest)
	}
	s.WriteString("</svg>\n")
	return s.String()
}

// writeBar draws a line whose top is at y. scale is the length of the value 1.
func writeBar(s *strings.Builder, y int, b bar, scale float64) {
	base := y + lineHeight - 5
	if b.value == 0 {
		writeText(s, margin, base, `font-weight="bold"`, b.label)
		return
	}
	colour, left, length := "#9aa5b1", margin+labelWidth, min(b.value, cut)*scale
	if b.ours {
		colour = "#2f7d4f"
	}
	writeText(s, margin+12, base, "", b.label)
	fmt.Fprintf(s, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", left, y+2, length, lineHeight-4, colour)
	writeText(s, left+int(length)+6, base, "", fmt.Sprintf("%.2f", b.value))
}

func writeText(s *strings.Builder, x, y int, attributes, text string) {
	fmt.Fprintf(s, `<text x="%d" y="%d" fill="#222" %s>%s</text>`+"\n", x, y, attributes, html.EscapeString(text))
}
