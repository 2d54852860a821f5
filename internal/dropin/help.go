package dropin

import (
	"fmt"
	"strings"
)

// help returns the help of a command, or of the tool for a command without a name.
func (t *tool) help(c *command) string {
	var out strings.Builder
	if found := t.find(c.name); found != nil && c.name != "help" {
		fmt.Fprintf(&out, "%s %s %s\n\n", t.name, c.name, c.args)
		if c.instead != "" {
			fmt.Fprintf(&out, "Not supported: %s.\n", c.instead)
			return out.String()
		}
		fmt.Fprintf(&out, "cairn does this as: %s\n\nFlags:\n", plain(c.becomes))
	} else {
		fmt.Fprintf(&out, "This is cairn, which takes the place of %s. Commands:\n\n", t.name)
		for _, c := range t.commands {
			what := "not supported: " + c.instead
			if c.instead == "" {
				what = plain(c.becomes)
			}
			fmt.Fprintf(&out, "  %-46s %s\n", strings.TrimSpace(t.name+" "+c.name+" "+c.args), what)
		}
		out.WriteString("\nFlags:\n")
	}
	for _, f := range t.flags {
		if c.name != "" && c.name != "help" && !f.isOn(c.name) {
			continue
		}
		fmt.Fprintf(&out, "  %-38s %s\n", f.usage(), plain(f.fate()))
	}
	return out.String()
}

// usage returns the flag as help texts show it.
func (f *flag) usage() string {
	text := "--" + f.name
	if f.short != "" {
		text = "-" + f.short + ", " + text
	}
	if f.value != "" {
		text += " " + f.value
	}
	return text
}

// fate returns what becomes of the flag.
func (f *flag) fate() string {
	switch {
	case f.ignored:
		return "ignored: " + f.becomes
	case f.refused:
		return "refused: " + f.becomes
	case f.to != "" && f.becomes == "":
		return "`" + f.to + "`"
	}
	return f.becomes
}

// plain returns text without the marks of Markdown.
func plain(text string) string { return strings.ReplaceAll(text, "`", "") }
