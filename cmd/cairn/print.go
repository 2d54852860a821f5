package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"cairn/internal/plaintext"
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
func logf(format string, args ...any) { printLine(stderr, "cairn: "+format, args...) }

// printLine prints a line. The arguments may contain any text: names of files, answers of servers.
func printLine(w io.Writer, format string, args ...any) {
	fmt.Fprintln(w, plaintext.Line(fmt.Sprintf(format, args...)))
}

// writeJSON writes a result as one object.
func writeJSON(w io.Writer, v any) error {
	var text bytes.Buffer
	e := json.NewEncoder(&text)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return err
	}
	_, err := w.Write(plaintext.EscapeJSON(text.Bytes()))
	return err
}
