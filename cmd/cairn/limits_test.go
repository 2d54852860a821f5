package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestLimitFlags: docs/limits.md names flags that exist, with their defaults.
func TestLimitFlags(t *testing.T) {
	text, err := os.ReadFile("../../docs/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	// The cells of a row: what, limit, set by, tests.
	row := regexp.MustCompile("(?m)^\\| .* \\| (.*) \\| `([a-z ]+) --([a-z-]+)`.* \\| .* \\|$")
	found := row.FindAllStringSubmatch(string(text), -1)
	if len(found) == 0 {
		t.Error("docs/limits.md names no flag")
	}
	for _, m := range found {
		limit, command, name := m[1], m[2], m[3]
		c, _, err := newRoot().Find(strings.Fields(command))
		if err != nil || c.Flags().Lookup(name) == nil {
			t.Errorf("docs/limits.md: cairn %s has no flag --%s", command, name)
			continue
		}
		flag := c.Flags().Lookup(name)
		initial := strings.ReplaceAll(flag.DefValue, " ", "")
		if m := regexp.MustCompile(`\(default: (\w+)\)$`).FindStringSubmatch(flag.Usage); m != nil {
			initial = m[1]
		}
		if regexp.MustCompile(`^[1-9]`).MatchString(initial) && !strings.HasPrefix(strings.ReplaceAll(limit, " ", ""), initial) {
			t.Errorf("docs/limits.md: the limit of cairn %s --%s is %q, and its default is %s", command, name, limit, initial)
		}
	}
}
