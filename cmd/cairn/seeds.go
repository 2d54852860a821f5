package main

import (
	"errors"
	"os"
	"strings"

	"cairn/blob/deploy"
	"cairn/internal/escape"
)

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// parseSeed parts PATH=INDEX, where both parts may hold "=" and the index may be missing. Text that is a path which
// exists has no index. Of several "=", the one counts that a URL follows; else one between two names that exist; else
// one behind such a name; else the last. A backslash makes an "=" part of a name.
func parseSeed(text string, exists func(string) bool) (s deploy.Place, err error) {
	if isURL(text) {
		return s, errors.New("a seed is on this machine, and not a URL (its INDEX may be one)")
	}
	tag := ""
	for _, t := range []string{"PARTLABEL=", "PARTUUID="} {
		if strings.HasPrefix(text, t) {
			tag = t
		}
	}
	rest := text[len(tag):]
	cuts := escape.Separators(rest, '=')
	if len(cuts) == 0 || exists(text) {
		if !exists(text) {
			rest = escape.Unescape(rest, '=')
		}
		return deploy.Place{Path: tag + rest}, nil
	}
	path, index := bestCut(rest, cuts, func(path string) bool { return tag != "" || isThere(path, exists) }, exists)
	s.Path = tag + path
	if index == "" {
		return s, nil
	}
	s.Index, err = parseLocation(index)
	return s, err
}

// bestCut parts text at the offset of the "=" that is meant most likely.
func bestCut(text string, cuts []int, seedExists, indexExists func(string) bool) (path, index string) {
	best := -1
	for _, at := range cuts {
		before, behind := escape.Cut(text, '=', at)
		if isURL(behind) {
			return before, text[at+1:] // a URL has no backslashes to remove
		}
		rank := 0
		if seedExists(before) {
			rank += 2
		}
		if indexExists(behind) {
			rank++
		}
		if rank >= best {
			best, path, index = rank, before, behind
		}
	}
	return path, index
}

// isThere reports whether a seed may be what text names: a path that exists, a partition of one, or the root.
func isThere(text string, exists func(string) bool) bool {
	if text == "@root" || exists(text) {
		return true
	}
	for _, at := range escape.Separators(text, '#') {
		if before, _ := escape.Cut(text, '#', at); exists(before) {
			return true
		}
	}
	return exists(escape.Unescape(text, '#'))
}
