package web

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestPatienceIsDocumented: docs/vms.md names the default.
func TestPatienceIsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/vms.md")
	if err != nil {
		t.Fatal(err)
	}
	base, err := Parse("http://images.example.com")
	if err != nil {
		t.Fatal(err)
	}
	r, err := New(base, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if row := fmt.Sprintf("to begin its answer, and to go on with it | – | %v |", r.patience); !strings.Contains(string(doc), row) {
		t.Errorf("docs/vms.md has no row %q", row)
	}
}
