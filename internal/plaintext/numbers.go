package plaintext

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
)

// Size returns a number of bytes with a unit, such as "1.5 MiB". A negative number counts as 0.
func Size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

// Count returns a number of things, such as "1 chunk", or "1,200 new chunks" for the noun "new chunk".
func Count(n int64, noun string) string {
	switch {
	case n == 1:
	case strings.HasSuffix(noun, "x"): // indexes
		noun += "es"
	default:
		noun += "s"
	}
	return humanize.Comma(n) + " " + noun
}

// Duration returns d rounded to seconds, or to hundredths of a second if it is short.
func Duration(d time.Duration) string {
	if d > 10*time.Second {
		return d.Round(time.Second).String()
	}
	return d.Round(10 * time.Millisecond).String()
}

// WriteTable writes rows of cells in aligned columns. The cells may contain any text.
func WriteTable(w io.Writer, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, row := range rows {
		var line strings.Builder
		for _, cell := range row {
			line.WriteString(Clean(cell, MaxLine) + "\t")
		}
		fmt.Fprintln(t, strings.TrimRight(line.String(), "\t "))
	}
	return t.Flush()
}
