package archtest

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// source is a Go file of the module.
type source struct {
	pkg    string // its directory, relative to the module's root
	name   string
	isTest bool
	file   *ast.File
}

// parse parses text as the Go file name, relative to the module's root.
func parse(name string, text []byte) (source, error) {
	file, err := parser.ParseFile(token.NewFileSet(), name, text, parser.SkipObjectResolution)
	return source{path.Dir(name), path.Base(name), strings.HasSuffix(name, "_test.go"), file}, err
}

// imports returns the paths that s imports.
func (s source) imports() []string {
	var paths []string
	for _, i := range s.file.Imports {
		paths = append(paths, importPath(i))
	}
	return paths
}

// locals maps the local names of s's imports to their paths.
func (s source) locals() map[string]string {
	locals := map[string]string{}
	for _, i := range s.file.Imports {
		name := path.Base(importPath(i))
		if i.Name != nil {
			name = i.Name.Name
		}
		locals[name] = importPath(i)
	}
	return locals
}

func importPath(i *ast.ImportSpec) string {
	p, _ := strconv.Unquote(i.Path.Value) // the parser has accepted it
	return p
}

// sources parses the module's Go files.
func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	walk(t, func(name string, text []byte) {
		if path.Ext(name) != ".go" || strings.Contains(name, "testdata/") {
			return
		}
		s, err := parse(name, text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	})
	if len(all) == 0 {
		t.Fatal("found no Go files")
	}
	return all
}

// walk visits the module's text files, with names relative to its root.
func walk(t *testing.T, visit func(name string, text []byte)) {
	t.Helper()
	tree := os.DirFS("../../..")
	notOurs := []string{".git", ".bin", ".cache"}
	err := fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && slices.Contains(notOurs, name) {
			return fs.SkipDir
		}
		if text, err := readText(tree, name, d); err != nil {
			return err
		} else if text != nil {
			visit(name, text)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// readText returns the content of a text file, and nil for a binary or a large file.
func readText(tree fs.FS, name string, d fs.DirEntry) ([]byte, error) {
	const limit = 1 << 20
	info, err := d.Info()
	if err != nil || !info.Mode().IsRegular() || info.Size() > limit {
		return nil, err
	}
	text, err := fs.ReadFile(tree, name)
	if bytes.IndexByte(text, 0) >= 0 {
		return nil, err
	}
	return text, err
}
