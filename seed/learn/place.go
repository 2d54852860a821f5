package learn

import (
	"errors"
	"os"
	"strings"

	"cairn/internal/escape"
	"cairn/internal/openfile"
	"cairn/store/locate"
)

// Place locates a seed: a file, device or partition in the form that disk.Resolve accepts, or a
// directory of images.
type Place struct {
	Path  string
	Index locate.Location // of the seed's content; the zero value is none
}

// ParsePlace parses a seed as users write it: PATH or PATH=INDEX. Both parts may contain "="; a backslash before an "="
// makes it part of a name.
//
// Text that is an existing path has no index. Among several "=", the first choice is one before a URL. Then follow one
// between two existing names, one after an existing seed, one before an existing index, and the last one.
func ParsePlace(text string) (Place, error) {
	if locate.IsURL(text) {
		return Place{}, errors.New("a seed is on this machine, and not a URL (its INDEX may be one)")
	}
	tag := ""
	for _, t := range []string{"PARTLABEL=", "PARTUUID="} {
		if strings.HasPrefix(text, t) {
			tag = t
		}
	}
	rest := text[len(tag):]
	separators := escape.Separators(rest, '=')
	switch {
	case exists(text):
		return Place{Path: text}, nil
	case len(separators) == 0:
		return Place{Path: tag + escape.Unescape(rest, '=')}, nil
	}
	path, index := splitPlace(rest, separators, tag != "")
	place := Place{Path: tag + path}
	if index == "" {
		return place, nil
	}
	var err error
	place.Index, err = locate.Parse(openfile.Standard(index, openfile.Stdin))
	return place, err
}

// splitPlace splits text at the most likely of its separators. A tagged path is the name of a partition, which counts as
// existing.
func splitPlace(text string, separators []int, tagged bool) (path, index string) {
	best := -1
	for _, at := range separators {
		before, after := escape.Cut(text, '=', at)
		if locate.IsURL(after) {
			return before, text[at+1:] // a URL has no backslashes to remove
		}
		rank := 0
		if tagged || seedExists(before) {
			rank += 2
		}
		if exists(after) {
			rank++
		}
		if rank >= best {
			best, path, index = rank, before, after
		}
	}
	return path, index
}

// seedExists reports whether text names an existing path, a partition of one, or the root.
func seedExists(text string) bool {
	if text == "@root" || exists(text) {
		return true
	}
	for _, at := range escape.Separators(text, '#') {
		if disk, _ := escape.Cut(text, '#', at); exists(disk) {
			return true
		}
	}
	return exists(escape.Unescape(text, '#'))
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
