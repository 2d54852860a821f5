package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestMeasure: the counts for a small module agree with its text.
func TestMeasure(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod": "module m\n\ngo 1.26\n",
		"a.go": `// Package m is what it is, and nobody knows who asked.
package m

// Box has a field.
type Box struct{ n int }

type lid struct{ open bool }

func (b *Box) Open(l *lid) { // a comment behind code
	l.open = true
	b.n++
}

func put(b Box) int { return b.n }

func putAway() string {
	return ` + "`two\nlines`" + `
}
`,
		"a_test.go": "package m\n\nvar _ = put\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	list, err := loadPackages("./...")
	if err != nil || len(list) != 1 {
		t.Fatalf("loadPackages = %d packages, %v, want 1", len(list), err)
	}
	f := new(figures)
	f.measure(list[0])
	for name, c := range map[string]struct{ got, want int }{
		"lines":                {f.lines, 19},
		"lines with code":      {f.code, 12},
		"lines with comments":  {f.comments, 3},
		"lines of tests":       {f.testCode, 2},
		"functions":            {len(f.lengths), 3},
		"lines of the longest": {max(f.lengths[0], f.lengths[1], f.lengths[2]), 4},
		"unexported":           {f.unexported, 2},
		"of one word":          {len(f.oneWord), 1},
		"exported":             {f.exported, 2},
		"documented":           {f.documented, 1},
		"field uses":           {f.fields, 2},
		"of another type":      {f.foreign, 1},
		"who":                  {f.wordCounts[0], 1},
		"what is":              {f.wordCounts[1], 1},
		"nobody":               {f.wordCounts[2], 1},
	} {
		if c.got != c.want {
			t.Errorf("%s: %d, want %d", name, c.got, c.want)
		}
	}
}
