// Package plaintext formats untrusted texts and numbers for people.
package plaintext

import (
	"fmt"
	"strings"
	"unicode"
)

// Percent returns the share of part in whole, as in "12.3 %", or "-" if whole is 0.
func Percent(part, whole int64) string {
	if whole == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", 100*float64(part)/float64(whole))
}

// Clean returns a text for display on one line. White space becomes a space. Unprintable characters, such as control
// characters and those that change the direction of text, become U+FFFD. After limit characters the text ends with an
// ellipsis.
func Clean(text string, limit int) string {
	var b strings.Builder
	n := 0
	for _, r := range text {
		if n++; n > limit {
			return b.String() + "…"
		}
		switch {
		case unicode.IsSpace(r):
			r = ' '
		case !unicode.IsPrint(r):
			r = unicode.ReplacementChar
		}
		b.WriteRune(r)
	}
	return b.String()
}
