package trust

import (
	"cmp"
	"strings"
)

// CompareVersions orders versions for people as the UAPI group's version format specification does
// (uapi-group.org/specifications/specs/version_format_specification), so that sysupdate, boot loaders and cairn agree
// on which of two is the newer one. It returns -1, 0 or +1.
func CompareVersions(a, b string) int {
	for {
		a, b = strings.TrimLeftFunc(a, isNoise), strings.TrimLeftFunc(b, isNoise)
		if r := compareSeparator(&a, &b, "~"); r != 0 {
			return r
		}
		if a == "" || b == "" {
			return cmp.Compare(len(a), len(b))
		}
		for _, separator := range []string{"-", "^", "."} {
			if r := compareSeparator(&a, &b, separator); r != 0 {
				return r
			}
		}
		var r int
		if isDigit(first(a)) || isDigit(first(b)) {
			r = compareNumbers(cutPrefix(&a, isDigit), cutPrefix(&b, isDigit))
		} else {
			r = strings.Compare(cutPrefix(&a, isLetter), cutPrefix(&b, isLetter))
		}
		if r != 0 {
			return r
		}
	}
}

// compareSeparator compares the presence of a separator at the beginning of both: the one that has it is the older one.
// It is cut off if both have it.
func compareSeparator(a, b *string, separator string) int {
	restA, hasA := strings.CutPrefix(*a, separator)
	restB, hasB := strings.CutPrefix(*b, separator)
	switch {
	case hasA && hasB:
		*a, *b = restA, restB
	case hasA:
		return -1
	case hasB:
		return 1
	}
	return 0
}

// compareNumbers compares strings of digits by their values. No digits are less than any.
func compareNumbers(a, b string) int {
	if a == "" || b == "" {
		return cmp.Compare(len(a), len(b))
	}
	a, b = strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0")
	return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b))
}

// cutPrefix cuts the longest prefix of characters of a kind off a string, and returns it.
func cutPrefix(s *string, is func(r rune) bool) string {
	rest := strings.TrimLeftFunc(*s, is)
	prefix := (*s)[:len(*s)-len(rest)]
	*s = rest
	return prefix
}

func first(s string) rune {
	for _, r := range s {
		return r
	}
	return 0
}

func isDigit(r rune) bool  { return '0' <= r && r <= '9' }
func isLetter(r rune) bool { return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' }

// isNoise reports whether a character has no meaning in a version.
func isNoise(r rune) bool { return !isDigit(r) && !isLetter(r) && !strings.ContainsRune("~-^.", r) }
