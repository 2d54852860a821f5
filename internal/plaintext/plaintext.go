// Package plaintext makes texts from outside fit to be shown.
package plaintext

import (
	"strings"
	"unicode"
)

// Clean is what can be shown of a text: no control characters, nor what changes the direction of the text around
// it, and no more than limit characters.
func Clean(text string, limit int) string {
	var b strings.Builder
	n := 0
	for _, r := range text {
		if n++; n > limit {
			return b.String() + "…"
		}
		if !unicode.IsPrint(r) {
			r = unicode.ReplacementChar
		}
		b.WriteRune(r)
	}
	return b.String()
}
