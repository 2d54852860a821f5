package main

import (
	"fmt"
	"html"
	"strings"
)

// bar is one line of a chart; one without a value heads those that follow.
type bar struct {
	label string
	value float64
	ours  bool
}

// chartOf draws a figure of every tool's cost in each job, as multiples of the first tool's.
func chartOf(title string, samples []sample, figure func(cost) float64) string {
	var bars []bar
	for job, samples := range groups(samples, func(s sample) string { return s.Job }) {
		bars = append(bars, bar{label: job})
		var ours float64
		for tool, samples := range groups(samples, func(s sample) string { return s.Tool }) {
			value := figure(costOf(samples))
			if ours == 0 {
				ours = max(value, tick)
			}
			bars = append(bars, bar{tool, value / ours, strings.HasPrefix(tool, "cairn")})
		}
	}
	return draw(title, bars)
}

// Sizes in the drawing, in pixels.
const (
	lineHeight = 18
	labelWidth = 130
	barWidth   = 480 // of the longest
	valueWidth = 70
	margin     = 10
)

// cut is the value of the longest bar: one far out must not make all others alike. Its number tells.
const cut = 12.0

// tick is what the clock of CPU time counts in, in seconds; less than one cannot be told from nothing.
const tick = 0.01

// draw makes an SVG that is readable on a bright and a dark page, and without any style sheet or script.
func draw(title string, bars []bar) string {
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

// writeBar draws a line whose top is at y; scale is the length of 1.
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
