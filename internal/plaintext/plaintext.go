// Package plaintext makes texts that people read: of texts from outside, and of numbers.
package plaintext

import (
	"fmt"
	"strings"
	"unicode"
)

// Percent returns how much of whole part is.
func Percent(part, whole int64) string {
	if whole == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", 100*float64(part)/float64(whole))
}

// Clean returns what can be shown of a text on one line: no control characters, none that change the direction of the
// text around it, and no more than limit characters. White space becomes a blank.
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
