package main

import (
	"fmt"
	"go/ast"
	"go/scanner"
	"go/token"
	"go/types"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// figures are the counts of one or more packages.
type figures struct {
	lines, long int // of all non-test files; long lines have more than 100 columns
	code        int // lines with a token
	testCode    int // of the tests
	comments    int // lines with a comment

	lengths              []int    // of functions, in lines
	unexported           int      // functions and methods
	oneWord              []string // unexported functions whose name is one lower-case word
	exported, documented int      // names of packages and methods
	fields, foreign      int      // uses in methods of the package's fields; uses of another type's fields
	dialect              []string // comment lines with a word of wordy
	wordCounts           [3]int
}

// wordy are words in comments in place of a noun. A reader cannot search for them.
var wordy = [3]*regexp.Regexp{
	regexp.MustCompile(`(?i)\b(who|whoever)\b`),
	regexp.MustCompile(`(?i)\bwhat (is|was|are|were|it|they|came|has|had|can)\b`),
	regexp.MustCompile(`(?i)\b(nobody|somebody)\b`),
}

func (f *figures) addCounts(g *figures) {
	for _, sum := range []struct {
		to   *int
		from int
	}{
		{&f.lines, g.lines}, {&f.long, g.long}, {&f.code, g.code}, {&f.testCode, g.testCode}, {&f.comments, g.comments},
		{&f.unexported, g.unexported}, {&f.exported, g.exported}, {&f.documented, g.documented}, {&f.fields, g.fields},
		{&f.foreign, g.foreign},
	} {
		*sum.to += sum.from
	}
	f.lengths = append(f.lengths, g.lengths...)
	f.oneWord = append(f.oneWord, g.oneWord...)
	f.dialect = append(f.dialect, g.dialect...)
	for i, n := range g.wordCounts {
		f.wordCounts[i] += n
	}
}

func (f *figures) functionsPer100() float64 { return 100 * ratio(len(f.lengths), f.lines) }

func (f *figures) dialects() string {
	return fmt.Sprintf("%d · %d · %d of %d", f.wordCounts[0], f.wordCounts[1], f.wordCounts[2], f.comments)
}

// measure counts a package.
func (f *figures) measure(p *pkg) {
	owners := fieldOwners(p.types)
	for _, s := range p.files {
		f.lines += strings.Count(string(s.text), "\n")
		for line := range strings.Lines(string(s.text)) {
			if countColumns(strings.TrimRight(line, "\n")) > 100 {
				f.long++
			}
		}
		code, comments := countLines(s.text)
		f.code += code
		f.comments += comments
		f.measureComments(p.fset, s.syntax)
		for _, d := range s.syntax.Decls {
			f.measureDeclaration(p, d, owners)
		}
	}
	for _, s := range p.tests {
		code, _ := countLines(s.text)
		f.testCode += code
	}
}

func countColumns(line string) int { return utf8.RuneCountInString(line) + 3*strings.Count(line, "\t") }

// countLines returns the numbers of lines with a token and of lines with a comment.
func countLines(text []byte) (code, comments int) {
	fset := token.NewFileSet()
	file := fset.AddFile("", -1, len(text))
	var s scanner.Scanner
	s.Init(file, text, nil, scanner.ScanComments)
	codeLines, commentLines := map[int]bool{}, map[int]bool{}
	for {
		pos, tok, literal := s.Scan()
		if tok == token.EOF {
			return len(codeLines), len(commentLines)
		}
		lines := codeLines
		if tok == token.COMMENT {
			lines = commentLines
		} else if tok == token.SEMICOLON && literal == "\n" {
			continue
		}
		first := file.Line(pos)
		for i := range strings.Count(literal, "\n") + 1 {
			lines[first+i] = true
		}
	}
}

func (f *figures) measureComments(fset *token.FileSet, file *ast.File) {
	for _, group := range file.Comments {
		for _, c := range group.List {
			line := fset.Position(c.Pos()).Line
			for i, text := range strings.Split(c.Text, "\n") {
				found := false
				for w, words := range wordy {
					if words.MatchString(text) {
						f.wordCounts[w]++
						found = true
					}
				}
				if found {
					f.dialect = append(f.dialect, fmt.Sprintf("%s:%d: %s", fset.Position(c.Pos()).Filename, line+i, text))
				}
			}
		}
	}
}

func (f *figures) measureDeclaration(p *pkg, d ast.Decl, owners map[*types.Var]string) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		f.measureFunction(p, d, owners)
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch s := spec.(type) {
			case *ast.TypeSpec:
				f.countExported([]*ast.Ident{s.Name}, d.Doc, s.Doc, s.Comment)
			case *ast.ValueSpec:
				f.countExported(s.Names, d.Doc, s.Doc, s.Comment)
			}
		}
	}
}

func (f *figures) countExported(names []*ast.Ident, docs ...*ast.CommentGroup) {
	documented := slices.ContainsFunc(docs, func(g *ast.CommentGroup) bool { return g != nil })
	for _, name := range names {
		if name.IsExported() {
			f.exported++
			if documented {
				f.documented++
			}
		}
	}
}

func (f *figures) measureFunction(p *pkg, d *ast.FuncDecl, owners map[*types.Var]string) {
	start, end := p.fset.Position(d.Pos()), p.fset.Position(d.End())
	f.lengths = append(f.lengths, end.Line-start.Line+1)
	receiver := receiverName(d)
	switch {
	case d.Name.IsExported():
		if receiver == "" || ast.IsExported(receiver) {
			f.countExported([]*ast.Ident{d.Name}, d.Doc)
		}
	case d.Name.Name != "main" && d.Name.Name != "init":
		f.unexported++
		if !strings.ContainsFunc(d.Name.Name, unicode.IsUpper) {
			f.oneWord = append(f.oneWord, fmt.Sprintf("%s:%d: %s", start.Filename, start.Line, d.Name.Name))
		}
	}
	if receiver == "" || d.Body == nil {
		return
	}
	ast.Inspect(d.Body, func(n ast.Node) bool {
		expression, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if s := p.info.Selections[expression]; s != nil && s.Kind() == types.FieldVal {
			if owner := owners[s.Obj().(*types.Var).Origin()]; owner != "" {
				f.fields++
				if owner != receiver {
					f.foreign++
				}
			}
		}
		return true
	})
}

// receiverName returns the name of a method's type, and "" for a function.
func receiverName(d *ast.FuncDecl) string {
	if d.Recv == nil {
		return ""
	}
	t := d.Recv.List[0].Type
	for {
		switch x := t.(type) {
		case *ast.StarExpr:
			t = x.X
		case *ast.IndexExpr:
			t = x.X
		case *ast.IndexListExpr:
			t = x.X
		case *ast.Ident:
			return x.Name
		default:
			return ""
		}
	}
}

// fieldOwners maps each field of a package's structs to the name of its type.
func fieldOwners(p *types.Package) map[*types.Var]string {
	owners := map[*types.Var]string{}
	for _, name := range p.Scope().Names() {
		if s, ok := p.Scope().Lookup(name).Type().Underlying().(*types.Struct); ok {
			if _, is := p.Scope().Lookup(name).(*types.TypeName); is {
				for field := range s.Fields() {
					owners[field] = name
				}
			}
		}
	}
	return owners
}
