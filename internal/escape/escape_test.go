package escape_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"cairn/internal/escape"
)

func TestSplit(t *testing.T) {
	for text, want := range map[string][]string{
		``:           {""},
		`a`:          {"a"},
		`a|b|`:       {"a", "b", ""},
		`a\|b|c`:     {"a|b", "c"},
		`a\\|b`:      {`a\`, "b"},
		`a\\\|b`:     {`a\|b`},
		`a\b\\c|d\`:  {`a\b\\c`, `d\`},
		`\|`:         {"|"},
		`x\x20y|\\z`: {`x\x20y`, `\\z`},
	} {
		if got := escape.Split(text, '|'); !slices.Equal(got, want) {
			t.Errorf("Split(%q) = %q, want %q", text, got, want)
		}
	}
}

func TestCut(t *testing.T) {
	text := `a\#b#c\#d#e`
	offsets := escape.Separators(text, '#')
	if want := []int{4, 9}; !slices.Equal(offsets, want) {
		t.Fatalf("Separators(%q) = %v, want %v", text, offsets, want)
	}
	for offset, want := range map[int][2]string{4: {"a#b", "c#d#e"}, 9: {"a#b#c#d", "e"}} {
		if before, after := escape.Cut(text, '#', offset); before != want[0] || after != want[1] {
			t.Errorf("Cut at %d = %q, %q; want %q", offset, before, after, want)
		}
	}
}

// FuzzEscape checks that Split returns any two parts that were escaped.
func FuzzEscape(f *testing.F) {
	f.Add(`a|b`, `c\`)
	f.Add(`\\|`, `|`)
	f.Fuzz(func(t *testing.T, a, b string) {
		if strings.HasSuffix(a, `\`) {
			a += "." // backslashes at the end of a part must be doubled too, which the expression below does not do
		}
		escaped := regexp.MustCompile(`(\\*)\|`) // doubles the backslashes before a separator, and escapes it
		text := escaped.ReplaceAllString(a, `$1$1\|`) + "|" + escaped.ReplaceAllString(b, `$1$1\|`)
		if got := escape.Split(text, '|'); !slices.Equal(got, []string{a, b}) {
			t.Errorf("Split(%q) = %q, want %q and %q", text, got, a, b)
		}
	})
}
