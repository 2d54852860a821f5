package archtest

import (
	"strings"
	"testing"
)

// TestRules checks sources that break each rule, and similar ones that do not.
func TestRules(t *testing.T) {
	for _, c := range []struct {
		name, file, text string
		want             string // a part of the only complaint; "" for none
	}{
		{"allowed", "store/a.go", `import "cairn/blob"`, ""},
		{"internal", "blob/a.go", `import "cairn/internal/lanes"`, ""},
		{"upward", "blob/a.go", `import "cairn/store"`, "may not import store"},
		{"sideways", "store/local/a.go", `import "cairn/store/web"`, "may not import store/web"},
		{"internal knows nothing", "internal/lanes/a.go", `import "cairn/blob"`, "may not import blob"},
		{"test reaches anywhere", "blob/a_test.go", `import "cairn/blob/ingest"`, ""},
		{"command reaches anywhere", "cmd/cairn/a.go", `import "cairn/blob/ingest"`, ""},
		{"unknown package", "util/a.go", ``, "not in the table"},
		{"unknown package of tests", "util/a_test.go", ``, "not in the table"},
		{"test package in a test", "store/a_test.go", `import "cairn/internal/test/need"`, ""},
		{"test package in another", "store/storetest/a.go", `import "cairn/internal/test/need"`, ""},
		{"test package in the product", "cmd/cairn/a.go", `import "cairn/testimages"`, "for tests only"},
		{"test package in a tool", "internal/test/demo/a.go", `import "cairn/testimages"`, ""},
		{"rig in the product", "internal/disk/a.go", `import "cairn/internal/test/need"`, "for tests only"},
		{"tool prints", "internal/test/bench/a.go", `import "os"; var w = os.Stderr`, ""},
		{"go-nbd at home", "nbd/gonbd/a.go", `import "github.com/pojntfx/go-nbd/pkg/server"`, ""},
		{"go-nbd in a test", "nbd/a_test.go", `import "github.com/pojntfx/go-nbd/pkg/server"`, "only nbd/gonbd"},
		{"go-nbd in the command", "cmd/cairn/a.go", `import "github.com/pojntfx/go-nbd/pkg/server"`, "only nbd/gonbd"},
		{"pkg/sftp elsewhere", "store/locate/a.go", `import "github.com/pkg/sftp"`, "only store/sftp"},
		{"standard error", "store/a.go", `import "os"; var w = os.Stderr`, "os.Stderr"},
		{"standard error renamed", "store/a.go", `import sys "os"; var w = sys.Stderr`, "sys.Stderr"},
		{"print", "store/a.go", `import "fmt"; func f() { fmt.Println() }`, "fmt.Println"},
		{"global logger", "nbd/a.go", `import "log/slog"; func f() { slog.Info("") }`, "slog.Info"},
		{"own logger", "nbd/a.go", `import "log/slog"; func f(l *slog.Logger) { l.Info("") }`, ""},
		{"command prints", "cmd/cairn/a.go", `import "os"; var w = os.Stderr`, ""},
		{"example prints", "blob/a_test.go", `import "fmt"; func f() { fmt.Println() }`, ""},
		{"init", "chunker/a.go", `func init() {}`, "init function"},
		{"init of a type", "chunker/a.go", `type t int; func (t) init() {}`, ""},
	} {
		s, err := parse(c.file, []byte("package p; "+c.text))
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		got := check(s)
		switch {
		case c.want == "" && len(got) > 0:
			t.Errorf("%s: check = %q, want no complaint", c.name, got)
		case c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)):
			t.Errorf("%s: check = %q, want one complaint with %q", c.name, got, c.want)
		}
	}
}
