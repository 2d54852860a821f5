package archtest

import (
	"go/ast"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestDocs: every test that the docs name exists.
func TestDocs(t *testing.T) {
	known := testNames(t)
	pattern := regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w*…?`) // "…" stands for any suffix
	walk(t, func(name string, text []byte) {
		if !strings.HasPrefix(name, "docs/") {
			return
		}
		for _, word := range pattern.FindAllString(string(text), -1) {
			start, open := strings.CutSuffix(word, "…")
			if !slices.ContainsFunc(known, func(k string) bool { return k == start || open && strings.HasPrefix(k, start) }) {
				t.Errorf("%s names %s, and there is no such test", name, word)
			}
		}
	})
}

// testNames returns the names of the module's tests and fuzz targets.
func testNames(t *testing.T) []string {
	var names []string
	for _, s := range sources(t) {
		for _, d := range s.file.Decls {
			f, is := d.(*ast.FuncDecl)
			if is && s.isTest && (strings.HasPrefix(f.Name.Name, "Test") || strings.HasPrefix(f.Name.Name, "Fuzz")) {
				names = append(names, f.Name.Name)
			}
		}
	}
	return names
}

// TestFiles: every Go file that docs/design.md names exists.
func TestFiles(t *testing.T) {
	text, err := os.ReadFile("../../../docs/design.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`([a-z0-9_/]+\\.go)`").FindAllSubmatch(text, -1)
	if len(named) == 0 {
		t.Error("docs/design.md names no file")
	}
	for _, m := range named {
		if _, err := os.Stat("../../../" + string(m[1])); err != nil {
			t.Errorf("docs/design.md names %s: %v", m[1], err)
		}
	}
}
