// Package escape splits texts at a separator that the parts may contain too. A backslash before the separator makes
// it an ordinary character, and backslashes directly before a separator are doubled. All other backslashes are
// ordinary characters, so a path without the separator is written unchanged.
package escape

import "strings"

// Separators returns the offsets of the unescaped separators in text.
func Separators(text string, separator byte) (offsets []int) {
	backslashes := 0 // directly before i
	for i := range len(text) {
		switch {
		case text[i] == '\\':
			backslashes++
			continue
		case text[i] == separator && backslashes%2 == 0:
			offsets = append(offsets, i)
		}
		backslashes = 0
	}
	return offsets
}

// Cut returns the unescaped texts before and after the separator at an offset.
func Cut(text string, separator byte, offset int) (before, after string) {
	before = Unescape(text[:offset+1], separator)
	return before[:len(before)-1], Unescape(text[offset+1:], separator)
}

// Split returns the unescaped parts of text between its separators.
func Split(text string, separator byte) (parts []string) {
	begin := 0
	for _, offset := range Separators(text, separator) {
		part, _ := Cut(text[begin:], separator, offset-begin)
		parts, begin = append(parts, part), offset+1
	}
	return append(parts, Unescape(text[begin:], separator))
}

// Unescape returns text with the escaping of its separators removed.
func Unescape(text string, separator byte) string {
	var out strings.Builder
	for text != "" {
		at := strings.IndexByte(text, separator)
		if at < 0 {
			break
		}
		plain := strings.TrimRight(text[:at], `\`)
		out.WriteString(plain)
		out.WriteString(strings.Repeat(`\`, (at-len(plain))/2))
		out.WriteByte(separator)
		text = text[at+1:]
	}
	out.WriteString(text)
	return out.String()
}
