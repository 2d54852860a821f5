package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
)

// stderr is where messages go. A job goes on when they cannot be written: its terminal may be closed.
var stderr io.Writer = unfailing{os.Stderr}

// unfailing writes to w and reports no error.
type unfailing struct{ w io.Writer }

func (u unfailing) Write(b []byte) (int, error) {
	_, _ = u.w.Write(b)
	return len(b), nil
}

// say tells the user something.
func say(format string, args ...any) { fmt.Fprintf(stderr, "cairn: "+format+"\n", args...) }

// size is a number of bytes for people.
func size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

// chunks returns a number of chunks as text, such as "3 new chunks" for the kind "new".
func chunks(n int64, kind ...string) string {
	noun := "chunks"
	if n == 1 {
		noun = "chunk"
	}
	return humanize.Comma(n) + " " + strings.Join(append(kind, noun), " ")
}

// rounded is a duration for people.
func rounded(d time.Duration) string {
	if d > 10*time.Second {
		return d.Round(time.Second).String()
	}
	return d.Round(10 * time.Millisecond).String()
}

// writeJSON writes a result as one object.
func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// table writes rows of cells in columns.
func table(w io.Writer, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(t, strings.TrimRight(strings.Join(row, "\t"), "\t "))
	}
	return t.Flush()
}
