package archtest

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/token"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestLimits: each limit in docs/limits.md is set by a flag or by a declaration of the program, has the value of that
// constant, and is held by tests of the named packages.
func TestLimits(t *testing.T) {
	text, err := os.ReadFile("../../../docs/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	code := declarations(t)
	rows := 0
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(line, "| \n"), " | ")
		if !strings.HasPrefix(line, "| ") || cells[0] == "what" {
			continue
		}
		if len(cells) != 4 {
			t.Errorf("docs/limits.md: a row has %d cells, want 4: %s", len(cells), line)
			continue
		}
		rows++
		for _, complaint := range slices.Concat(checkSetter(code, cells[1], cells[2]), checkHolders(code, cells[3])) {
			t.Errorf("docs/limits.md: %s: %s", cells[0], complaint)
		}
	}
	if rows == 0 {
		t.Error("docs/limits.md has no limits")
	}
}

// checkSetter returns the complaints about a cell such as "`make --uploads`, `nbd` maxRequests". A flag is checked by
// a test of cmd/cairn.
func checkSetter(code code, limit, cell string) (complaints []string) {
	setter := regexp.MustCompile("`([^`]+)`( \\w+)?")
	if !setter.MatchString(cell) {
		return []string{"nothing sets it"}
	}
	for _, m := range setter.FindAllStringSubmatch(cell, -1) {
		pkg, name := m[1], strings.TrimSpace(m[2])
		if strings.Contains(pkg, " --") {
			continue
		}
		if !code.names[pkg+" "+name] {
			complaints = append(complaints, fmt.Sprintf("package %s declares no %s", pkg, name))
		}
		expr, is := code.constants[pkg+" "+name]
		want, stated := parseValue(limit)
		if !is || !stated {
			continue
		}
		if got := code.eval(pkg, expr); got == nil || !constant.Compare(got, token.EQL, want) {
			complaints = append(complaints, fmt.Sprintf("the limit is %s, and %s.%s is %v", limit, pkg, name, got))
		}
	}
	return complaints
}

// checkHolders returns the complaints about a cell such as "`nbd` TestPool, TestAdmission · `store` TestRetry".
func checkHolders(code code, cell string) (complaints []string) {
	for group := range strings.SplitSeq(cell, " · ") {
		pkg, tests, _ := strings.Cut(strings.TrimPrefix(group, "`"), "` ")
		for test := range strings.SplitSeq(tests, ", ") {
			if !strings.HasPrefix(test, "Test") && !strings.HasPrefix(test, "Fuzz") || !code.names[pkg+" "+test] {
				complaints = append(complaints, fmt.Sprintf("package %q has no test %q", pkg, test))
			}
		}
	}
	return complaints
}

// code has the declarations of the module, by "package name".
type code struct {
	names     map[string]bool
	constants map[string]ast.Expr
}

func declarations(t *testing.T) code {
	code := code{map[string]bool{}, map[string]ast.Expr{}}
	for _, s := range sources(t) {
		for _, d := range s.file.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				code.names[s.pkg+" "+d.Name.Name] = true
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					code.addValues(s.pkg, d.Tok, spec)
				}
			}
		}
	}
	return code
}

// addValues adds the constants or variables of a specification.
func (c code) addValues(pkg string, kind token.Token, spec ast.Spec) {
	values, is := spec.(*ast.ValueSpec)
	if !is {
		return
	}
	for i, name := range values.Names {
		c.names[pkg+" "+name.Name] = true
		if kind == token.CONST && i < len(values.Values) {
			c.constants[pkg+" "+name.Name] = values.Values[i]
		}
	}
}

// units are the units of limits, and the constants of package time.
var units = map[string]int64{
	"": 1, "bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30,
	"ms": int64(time.Millisecond), "s": int64(time.Second), "min": int64(time.Minute),
	"Millisecond": int64(time.Millisecond), "Second": int64(time.Second), "Minute": int64(time.Minute), "Hour": int64(time.Hour),
}

// parseValue parses the value at the start of a limit such as "4,096 bytes" or "10 s between two". It reports false if
// there is none.
func parseValue(limit string) (constant.Value, bool) {
	m := regexp.MustCompile(`^(\d[\d,]*)(?: (KiB|MiB|GiB|bytes|ms|s|min)\b)?`).FindStringSubmatch(limit)
	if m == nil {
		return nil, false
	}
	n := constant.MakeFromLiteral(strings.ReplaceAll(m[1], ",", ""), token.INT, 0)
	return constant.BinaryOp(n, token.MUL, constant.MakeInt64(units[m[2]])), true
}

// eval returns the value of a constant expression of a package, or nil.
func (c code) eval(pkg string, e ast.Expr) constant.Value {
	switch e := e.(type) {
	case *ast.BasicLit:
		return constant.MakeFromLiteral(e.Value, e.Kind, 0)
	case *ast.ParenExpr:
		return c.eval(pkg, e.X)
	case *ast.Ident:
		return c.eval(pkg, c.constants[pkg+" "+e.Name])
	case *ast.SelectorExpr:
		return constant.MakeInt64(units[e.Sel.Name])
	case *ast.BinaryExpr:
		x, y := c.eval(pkg, e.X), c.eval(pkg, e.Y)
		if x == nil || y == nil {
			return nil
		}
		if n, exact := constant.Uint64Val(y); e.Op == token.SHL && exact {
			return constant.Shift(x, e.Op, uint(n))
		}
		return constant.BinaryOp(x, e.Op, y)
	}
	return nil
}
