// Package plaintext formats untrusted texts and numbers for people.
package plaintext

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Percent returns the share of part in whole, as in "12.3 %", or "-" if whole is 0.
func Percent(part, whole int64) string {
	if whole == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", 100*float64(part)/float64(whole))
}

// MaxLine limits the characters of a message or of a cell in a table.
const MaxLine = 4096

// Line returns a message for display on one line, as Clean does. The lines of a longer text, such as several joined
// errors, are separated by semicolons.
func Line(text string) string {
	return Clean(strings.ReplaceAll(strings.TrimSpace(text), "\n", "; "), MaxLine)
}

// EscapeJSON returns JSON text with the same values, where characters that Clean would replace are escaped as \u.
// encoding/json escapes only some of them.
func EscapeJSON(text []byte) []byte {
	var out []byte
	from := 0 // the bytes before it are in out
	for at := 0; at < len(text); {
		r, n := utf8.DecodeRune(text[at:])
		if r < utf8.RuneSelf && r != 0x7f || unicode.IsPrint(r) && (r != utf8.RuneError || n > 1) {
			at += n
			continue
		}
		out = append(out, text[from:at]...)
		for _, u := range utf16.Encode([]rune{r}) {
			out = fmt.Appendf(out, `\u%04x`, u)
		}
		at += n
		from = at
	}
	if from == 0 {
		return text
	}
	return append(out, text[from:]...)
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
