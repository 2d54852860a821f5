// Package archtest tests rules about the source: which package imports which, which prints, and texts that the
// tree must not contain. The tests read the source files themselves, so go test runs them again when a file has
// changed.
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

// imports lists the packages of this module that each package may import, besides internal/..., which all may
// import. An internal package may import none of the others unless it has a line here.
var imports = map[string]string{
	"blob":                "",
	"blob/scan":           "blob chunker",
	"blob/ingest":         "blob blob/scan chunker store",
	"blob/update":         "blob blob/release blob/trust store/locate",
	"blob/verify":         "blob store",
	"blob/trust":          "",
	"blob/assemble":       "blob seed store",
	"blob/deploy":         "blob blob/assemble blob/delta blob/delta/apply blob/release blob/scan blob/verify chunker seed seed/known seed/learn store store/locate",
	"blob/delta":          "blob store/chunkfile",
	"blob/delta/apply":    "blob blob/delta blob/release seed store",
	"blob/profile":        "blob",
	"blob/release":        "blob blob/trust blob/delta blob/profile store store/chunkfile store/gcroot store/locate store/pack",
	"blob/view":           "blob blob/profile blob/view/fetch",
	"blob/view/fetch":     "blob store",
	"chunker":             "",
	"store":               "blob store/chunkfile",
	"store/chunkfile":     "blob",
	"store/local":         "store",
	"store/cachedir":      "store store/local",
	"store/web":           "store",
	"store/s3":            "store",
	"store/sftp":          "store",
	"store/locate":        "store store/local store/web store/s3 store/sftp",
	"store/pack":          "blob store store/chunkfile",
	"store/storetest":     "store blob",
	"store/supply":        "blob store store/locate store/pack",
	"store/gcroot":        "store blob",
	"store/keep":          "store store/gcroot store/pack blob",
	"seed":                "blob chunker",
	"seed/known":          "blob",
	"seed/learn":          "blob blob/release blob/scan blob/verify chunker seed/known store/locate",
	"nbd":                 "",
	"nbd/export":          "nbd blob blob/delta blob/delta/apply blob/profile blob/release blob/scan blob/view blob/view/fetch blob/view/imagecache seed seed/learn store store/locate store/pack store/supply",
	"nbd/gonbd":           "nbd",
	"nbd/nbdtest":         "nbd",
	"testimages":          "",
	"cmd/cairn":           anything,
	"internal/test/demo":  "nbd/nbdtest testimages",
	"internal/test/mem":   "store",
	"internal/test/bench": "blob blob/delta store",
	"internal/test/scale": "blob/trust blob/update store",

	"internal/test/packtest": "blob store store/pack",
	"blob/delta/deltadir":    "blob blob/delta blob/release store",
	"internal/dropin/report": "blob blob/assemble store",
	"internal/test/hostile":  "nbd/nbdtest",
	"internal/transfer":      "store",
	"internal/imagemap":      "seed",
	"blob/view/imagecache":   "blob",
}

// testOnly are the packages outside of internal/test that only tests, tools and one another may import.
var testOnly = []string{"testimages", "store/storetest", "nbd/nbdtest"}

func isTestOnly(pkg string) bool {
	return strings.HasPrefix(pkg, "internal/test/") || slices.Contains(testOnly, pkg)
}

// tools are programs for developers and not part of the product: they may print, and import test packages.
var tools = []string{"internal/test/bench", "internal/test/demo", "internal/test/figures", "internal/test/hostile",
	"internal/test/scale"}

// homes maps a module to the only package that may import it, also in tests.
var homes = map[string]string{
	"github.com/pojntfx/go-nbd": "nbd/gonbd",
	"github.com/pkg/sftp":       "store/sftp",
}

// printing are the functions and variables that write to the terminal or a global log. Only programs may use them.
var printing = map[string]string{
	"os":  "Stdout Stderr",
	"fmt": "Print Printf Println",
	"log": "Print Printf Println Fatal Fatalf Fatalln Panic Panicf Panicln Default",
	"log/slog": "Default SetDefault Log LogAttrs Debug DebugContext Info InfoContext " +
		"Warn WarnContext Error ErrorContext",
}

// openFiles is the package for files that are open when a process begins. It prints nothing itself.
const openFiles = "internal/openfile"

func TestSources(t *testing.T) {
	for _, s := range sources(t) {
		for _, complaint := range check(s) {
			t.Errorf("%s: %s", path.Join(s.pkg, s.name), complaint)
		}
	}
}

// check returns the rules that s breaks.
func check(s source) []string {
	return slices.Concat(checkTable(s), checkTestOnly(s), checkHomes(s), checkPrinting(s), checkInit(s))
}

// checkTable returns the imports of s that the table forbids.
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

// outside is a directory outside of the repository. The text is split so that this file passes the test.
const outside = ".." + "/shared"

func TestTexts(t *testing.T) {
	walk(t, func(name string, data []byte) {
		if bytes.Contains(data, []byte(outside)) {
			t.Errorf("%s mentions %s, which is not in the repository", name, outside)
		}
	})
}
