// Package archtest holds the rules about who may import whom, who may print, and what the tree may not mention,
// as tests. They read the source files themselves, so that go test runs them again when a file has changed.
package archtest

import (
	"bytes"
	"fmt"
	"go/ast"
	"path"
	"slices"
	"strings"
	"testing"
)

const (
	module   = "cairn"
	anything = "*"
)

// imports says which of our packages each of our packages may import, besides internal/... which all may. An
// internal package knows nothing of the others, unless it has a line here.
var imports = map[string]string{
	"blob":               "",
	"blob/scan":          "blob chunker",
	"blob/ingest":        "blob blob/scan chunker store",
	"blob/verify":        "blob store",
	"blob/assemble":      "blob seed store",
	"blob/deploy":        "blob blob/assemble blob/release blob/scan blob/verify chunker seed seed/known store store/locate",
	"blob/profile":       "blob",
	"blob/release":       "blob blob/profile store store/locate",
	"blob/view":          "blob blob/profile blob/view/fetch",
	"blob/view/fetch":    "blob store",
	"chunker":            "",
	"store":              "blob store/chunkfile",
	"store/chunkfile":    "blob",
	"store/local":        "store",
	"store/cachedir":     "store store/local",
	"store/web":          "store",
	"store/s3":           "store",
	"store/sftp":         "store",
	"store/locate":       "store store/local store/web store/s3 store/sftp",
	"store/storetest":    "store blob",
	"store/supply":       "blob store store/locate",
	"store/keep":         "store blob",
	"seed":               "blob chunker",
	"seed/known":         "blob",
	"nbd":                "",
	"nbd/export":         "nbd blob blob/profile blob/release blob/view blob/view/fetch blob/view/imagecache store store/locate store/supply",
	"nbd/gonbd":          "nbd",
	"nbd/nbdtest":        "nbd",
	"testimages":         "",
	"cmd/cairn":          anything,
	"internal/test/demo": "nbd/nbdtest testimages",
	"internal/test/mem":  "store",

	"internal/transfer":    "store",
	"internal/imagemap":    "seed",
	"blob/view/imagecache": "blob",
}

// testOnly are the packages that only tests, tools and one another may import, besides those below internal/test.
var testOnly = []string{"testimages", "store/storetest", "nbd/nbdtest"}

func isTestOnly(pkg string) bool {
	return strings.HasPrefix(pkg, "internal/test/") || slices.Contains(testOnly, pkg)
}

// tools are programs for developers, no part of the product: they may print, and use what is for tests only.
var tools = []string{"internal/test/bench", "internal/test/demo", "internal/test/figures"}

// homes are modules that one package may import, tests included.
var homes = map[string]string{
	"github.com/pojntfx/go-nbd": "nbd/gonbd",
	"github.com/pkg/sftp":       "store/sftp",
}

// printing are the names by which a package talks past its caller. Only programs do.
var printing = map[string]string{
	"os":  "Stdout Stderr",
	"fmt": "Print Printf Println",
	"log": "Print Printf Println Fatal Fatalf Fatalln Panic Panicf Panicln Default",
	"log/slog": "Default SetDefault Log LogAttrs Debug DebugContext Info InfoContext " +
		"Warn WarnContext Error ErrorContext",
}

// openFiles is the package that hands out the files that are open when a process begins. It prints nothing itself.
const openFiles = "internal/openfile"

func TestSources(t *testing.T) {
	for _, s := range sources(t) {
		for _, complaint := range check(s) {
			t.Errorf("%s: %s", path.Join(s.pkg, s.name), complaint)
		}
	}
}

// check says which rules s breaks.
func check(s source) []string {
	return slices.Concat(checkTable(s), checkTestOnly(s), checkHomes(s), checkPrinting(s), checkInit(s))
}

// checkTable says what s imports against the table.
func checkTable(s source) (complaints []string) {
	allowed, known := imports[s.pkg]
	switch {
	case !known && !strings.HasPrefix(s.pkg, "internal/"):
		return []string{fmt.Sprintf("package %q is not in the table of imports: add it to the map imports "+
			"of internal/test/archtest and to docs/design.md, with what it may import", s.pkg)}
	case s.isTest || allowed == anything:
		return nil
	}
	for _, p := range s.imports() {
		ours, is := strings.CutPrefix(p, module+"/")
		if is && !strings.HasPrefix(ours, "internal/") && !slices.Contains(strings.Fields(allowed), ours) {
			complaints = append(complaints, fmt.Sprintf("%s may not import %s, only: %s", s.pkg, ours, allowed))
		}
	}
	return complaints
}

func checkTestOnly(s source) (complaints []string) {
	if s.isTest || isTestOnly(s.pkg) || slices.Contains(tools, s.pkg) {
		return nil
	}
	for _, p := range s.imports() {
		if ours, is := strings.CutPrefix(p, module+"/"); is && isTestOnly(ours) {
			complaints = append(complaints, ours+" is for tests only")
		}
	}
	return complaints
}

func checkHomes(s source) (complaints []string) {
	for _, p := range s.imports() {
		for module, home := range homes {
			if s.pkg != home && (p == module || strings.HasPrefix(p, module+"/")) {
				complaints = append(complaints, "only "+home+" may import "+p)
			}
		}
	}
	return complaints
}

func checkPrinting(s source) (complaints []string) {
	if s.isTest || strings.HasPrefix(s.pkg, "cmd/") || slices.Contains(tools, s.pkg) || s.pkg == openFiles {
		return nil
	}
	locals := s.locals()
	ast.Inspect(s.file, func(n ast.Node) bool {
		selector, is := n.(*ast.SelectorExpr)
		if !is {
			return true
		}
		x, is := selector.X.(*ast.Ident)
		if is && slices.Contains(strings.Fields(printing[locals[x.Name]]), selector.Sel.Name) {
			complaints = append(complaints, fmt.Sprintf("uses %s.%s: packages return, only cmd/cairn prints",
				x.Name, selector.Sel.Name))
		}
		return true
	})
	return complaints
}

func checkInit(s source) (complaints []string) {
	for _, d := range s.file.Decls {
		if f, is := d.(*ast.FuncDecl); is && f.Recv == nil && f.Name.Name == "init" {
			complaints = append(complaints, "has an init function: wire things where they are used")
		}
	}
	return complaints
}

// outside is where notes about this project may lie that are no part of it. It is spelt so that this file passes.
const outside = ".." + "/shared"

func TestTexts(t *testing.T) {
	walk(t, func(name string, data []byte) {
		if bytes.Contains(data, []byte(outside)) {
			t.Errorf("%s mentions %s, which is not in the repository", name, outside)
		}
	})
}
