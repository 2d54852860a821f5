package main

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestHelpFits checks that the help of every command names it, and fits into a terminal.
func TestHelpFits(t *testing.T) {
	const width = 120
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		help := c.Long + "\n" + c.UsageString()
		if !strings.Contains(help, c.CommandPath()) {
			t.Errorf("the help of %s does not name it", c.CommandPath())
		}
		for line := range strings.Lines(help) {
			if len(strings.TrimRight(line, "\n")) > width {
				t.Errorf("%s: a line of the help has %d columns: %s", c.CommandPath(), len(line), line)
			}
		}
		for _, below := range c.Commands() {
			visit(below)
		}
	}
	visit(newRoot())
}
