package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
)

// stderr receives messages. A job continues when they cannot be written: its terminal may be closed.
var stderr io.Writer = errorIgnorer{os.Stderr}

// errorIgnorer writes to w and reports no error.
type errorIgnorer struct{ w io.Writer }

func (e errorIgnorer) Write(b []byte) (int, error) {
	_, _ = e.w.Write(b)
	return len(b), nil
}

// logf prints a message to stderr.
func logf(format string, args ...any) { fmt.Fprintf(stderr, "cairn: "+format+"\n", args...) }

// writeJSON writes a result as one object.
func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
