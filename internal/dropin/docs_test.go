package dropin

import (
	goflag "flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = goflag.Bool("update", false, "write the tables of docs/integrations.md anew")

// TestDocs: the tables in docs/integrations.md are those of this package. `go test ./internal/dropin -update` writes them.
func TestDocs(t *testing.T) {
	const file = "../../docs/integrations.md"
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	for name, table := range map[string]string{
		"casync": casync.markdown(), "desync": desync.markdown(), "examples": examplesTable(t),
	} {
		block := regexp.MustCompile(`(?s)(<!-- table of ` + name + ` -->\n).*?(<!-- end -->)`)
		if !block.MatchString(text) {
			t.Fatalf("%s has no place for the table of %s", file, name)
		}
		text = block.ReplaceAllStringFunc(text, func(old string) string {
			m := block.FindStringSubmatch(old)
			return m[1] + table + m[2]
		})
	}
	if *update {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(string(data), text); diff != "" && !*update {
		t.Errorf("%s is stale: run 'go test ./internal/dropin -update' (-old +new):\n%s", file, diff)
	}
}

// markdown returns the commands and flags of a tool as tables.
func (t *tool) markdown() string {
	var out strings.Builder
	fmt.Fprintf(&out, "\n| %s | what becomes of it |\n|---|---|\n", t.name)
	for _, c := range t.commands {
		becomes := c.becomes
		if c.instead != "" {
			becomes = "refused: " + c.instead
		}
		fmt.Fprintf(&out, "| `%s` | %s |\n", cell(strings.TrimSpace(t.name+" "+c.name+" "+c.args)), cell(becomes))
	}
	fmt.Fprintf(&out, "\n| flag | of | what becomes of it |\n|---|---|---|\n")
	for _, f := range t.flags {
		on := strings.ReplaceAll(f.on, " ", ", ")
		if on == "" {
			on = "all"
		}
		fmt.Fprintf(&out, "| `%s` | %s | %s |\n", cell(f.usage()), on, cell(f.fate()))
	}
	return out.String() + "\n"
}

// cell returns text for a cell of a table.
func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }

// examplesTable returns the examples of testdata/examples.txt, and what becomes of each.
func examplesTable(t *testing.T) string {
	data, err := os.ReadFile("testdata/examples.txt")
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for _, dir := range []string{"home/lennart", "path/to/images", "etc/desync"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"path/to/client.json", "path/to/server.json", "etc/desync/config.json"} {
		if err := os.WriteFile(filepath.Join(root, file), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("HOME", root)
	var out strings.Builder
	out.WriteString("\n| example | with cairn |\n|---|---|\n")
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		mark, example, _ := strings.Cut(line, " ")
		if mark != "+" && mark != "-" {
			continue
		}
		args := strings.Fields(absolute.ReplaceAllString(example, "${1}"+root+"/${2}"))
		call, err := Translate(args[0], args[1:], "VERSION")
		if (err == nil) != (mark == "+") {
			t.Errorf("%s: %v, want %s", example, err, mark)
		}
		becomes := "works: `cairn " + strings.Join(call.Args, " ") + "`"
		switch {
		case err != nil:
			becomes = "refused: " + err.Error()
		case call.Digest != nil && call.Args == nil, call.Text != "":
			becomes = "works"
		case call.Digest != nil && call.Digest.Path == "":
			becomes += ", and prints the digest"
		}
		fmt.Fprintf(&out, "| `%s` | %s |\n", cell(example), cell(strings.ReplaceAll(becomes, root, "")))
	}
	return out.String() + "\n"
}

// absolute matches the first slash of an absolute path in a command line.
var absolute = regexp.MustCompile(`(^|[ =:|])/([a-z])`)
