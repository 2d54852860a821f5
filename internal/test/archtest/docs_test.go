package archtest

import (
	"go/ast"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestDocs: the docs say which test holds which rule; so there must be such a test.
func TestDocs(t *testing.T) {
	known := testNames(t)
	pattern := regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w*…?`) // "…" stands for any end
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

// testNames are the module's functions that are called like tests.
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
