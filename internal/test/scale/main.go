// Scale computes the tables of docs/scale.md, from measured figures, a price list and assumptions, and writes them into
// the document.
//
//	go run ./internal/test/scale [FILE]
package main

import (
	"cmp"
	"fmt"
	"os"
	"regexp"
)

func main() {
	file := "docs/scale.md"
	if len(os.Args) > 1 {
		file = os.Args[1]
	}
	if err := run(file); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func run(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	text, err := fillTables(string(data))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return os.WriteFile(file, []byte(text), 0o644)
}

// block is the place of a table in the document.
var block = regexp.MustCompile(`(?s)(<!-- table of ([a-z]+) -->\n).*?(<!-- end -->)`)

// fillTables returns the text with all tables in their places.
func fillTables(text string) (string, error) {
	all := tables()
	var err error
	text = block.ReplaceAllStringFunc(text, func(old string) string {
		m := block.FindStringSubmatch(old)
		table, ok := all[m[2]]
		if !ok {
			err = cmp.Or(err, fmt.Errorf("there is no table of %s", m[2]))
		}
		delete(all, m[2])
		return m[1] + table + m[3]
	})
	for name := range all {
		err = cmp.Or(err, fmt.Errorf("it has no place for the table of %s", name))
	}
	return text, err
}
