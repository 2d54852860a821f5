package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// source is a Go file with its syntax. Generated files are left out.
type source struct {
	name   string
	text   []byte
	syntax *ast.File
}

// pkg is a package with its types.
type pkg struct {
	path         string
	fset         *token.FileSet
	files, tests []source
	types        *types.Package
	info         *types.Info
}

// listed is the description of a package that 'go list' prints.
type listed struct {
	ImportPath, Dir, Export            string
	GoFiles, TestGoFiles, XTestGoFiles []string
	DepOnly                            bool
}

// loadPackages parses and type-checks the packages that 'go list' matches, as they are built on this machine.
func loadPackages(pattern string) ([]*pkg, error) {
	command := exec.Command("go", "list", "-export", "-deps", "-json", pattern)
	command.Stderr = os.Stderr
	output, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	exports := map[string]string{}
	var wanted []listed
	for d := json.NewDecoder(bytes.NewReader(output)); ; {
		var l listed
		if err := d.Decode(&l); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		exports[l.ImportPath] = l.Export
		if !l.DepOnly {
			wanted = append(wanted, l)
		}
	}
	lookup := func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) }
	fset := token.NewFileSet()
	imports := importer.ForCompiler(fset, "gc", lookup)
	var list []*pkg
	for _, l := range wanted {
		p, err := l.typeCheck(fset, imports)
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	return list, nil
}

func (l listed) typeCheck(fset *token.FileSet, imports types.Importer) (*pkg, error) {
	p := &pkg{path: l.ImportPath, fset: fset, info: &types.Info{Selections: map[*ast.SelectorExpr]*types.Selection{}}}
	files, syntax, err := parseFiles(fset, l.Dir, l.GoFiles)
	if err != nil {
		return nil, err
	}
	p.files = files
	for _, names := range [][]string{l.TestGoFiles, l.XTestGoFiles} {
		tests, _, err := parseFiles(fset, l.Dir, names)
		if err != nil {
			return nil, err
		}
		p.tests = append(p.tests, tests...)
	}
	p.types, err = (&types.Config{Importer: imports}).Check(l.ImportPath, fset, syntax, p.info)
	return p, err
}

func parseFiles(fset *token.FileSet, dir string, names []string) (files []source, all []*ast.File, err error) {
	for _, name := range names {
		path := filepath.Join(dir, name)
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, nil, err
		}
		syntax, err := parser.ParseFile(fset, path, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, nil, err
		}
		all = append(all, syntax)
		if !ast.IsGenerated(syntax) {
			files = append(files, source{path, text, syntax})
		}
	}
	return files, all, nil
}
