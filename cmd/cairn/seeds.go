package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"cairn/blob"
	"cairn/blob/release"
	"cairn/internal/blockdev"
	"cairn/internal/disk"
	"cairn/internal/escape"
	"cairn/seed"
	"cairn/store/locate"
)

// openSeed is a seed that is open, and not yet looked into.
type openSeed struct {
	name  string
	index locate.Location // or none
	file  *blockdev.File
}

// openSeeds opens the seeds that the flags name; closeSeeds ends their use. A seed that cannot be opened, for whatever
// reason, is left out with a warning: it costs a download.
func openSeeds(places []seedPlace) []openSeed {
	var seeds []openSeed
	for _, place := range places {
		more, err := openSeedsAt(place.path, place.index)
		seeds = append(seeds, more...)
		if err != nil {
			warnSeed(place.path, err)
		}
	}
	return seeds
}

func warnSeed(name string, err error) { say("warning: seed %s is not used: %v", name, err) }

func closeSeeds(seeds []openSeed) {
	for _, s := range seeds {
		s.file.Close()
	}
}

// openSeedsAt opens a seed, or all the images in a directory.
func openSeedsAt(location string, index locate.Location) ([]openSeed, error) {
	if info, err := os.Stat(location); err == nil && info.IsDir() {
		return openSeedDir(location)
	}
	at, err := disk.Resolve(location)
	if err != nil {
		return nil, err
	}
	if at.Note != "" {
		say("seed %s is %s", location, at.Note)
	}
	f, err := blockdev.OpenRead(at.Path, at.Section)
	if err != nil {
		return nil, err
	}
	return []openSeed{{location, index, f}}, nil
}

// openSeedDir opens the files in a directory as seeds, as far as they can be. An index beside an image, IMAGE.caibx, is
// the image's.
func openSeedDir(dir string) (seeds []openSeed, err error) {
	entries, err := os.ReadDir(dir) // with an error some may be known
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if !e.Type().IsRegular() || strings.HasSuffix(path, release.IndexSuffix) || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		f, err := blockdev.OpenRead(path, blockdev.Section{})
		if err != nil {
			warnSeed(path, err)
			continue
		}
		s := openSeed{name: path, file: f}
		if exists(path + release.IndexSuffix) {
			s.index = locate.Path(path + release.IndexSuffix)
		}
		seeds = append(seeds, s)
	}
	return seeds, err
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// seedPlace is a seed as the user names it.
type seedPlace struct {
	path  string          // as disk.Resolve takes it
	index locate.Location // or none
}

// seedsFlag is a repeatable flag that takes PATH[=INDEX].
type seedsFlag struct{ value *[]seedPlace }

func (f seedsFlag) String() string { return "" }
func (f seedsFlag) Type() string   { return "seed" }

func (f seedsFlag) Set(text string) error {
	s, err := parseSeed(text, exists)
	*f.value = append(*f.value, s)
	return err
}

// parseSeed parts PATH=INDEX, where both parts may hold "=" and the index may be missing. Text that is a path which
// exists has no index. Of several "=", the one counts that a URL follows; else one between two names that exist; else
// one behind such a name; else the last. A backslash makes an "=" part of a name.
func parseSeed(text string, exists func(string) bool) (s seedPlace, err error) {
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
		return seedPlace{path: tag + rest}, nil
	}
	path, index := bestCut(rest, cuts, func(path string) bool { return tag != "" || isThere(path, exists) }, exists)
	s.path = tag + path
	if index == "" {
		return s, nil
	}
	s.index, err = parseLocation(index)
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

// learn finds out what the seeds hold, so that x can be planned with them: from the index given with a
// seed, from memory, or by scanning it. A seed that cannot be used is left out with a warning: it costs a
// download.
func learn(ctx context.Context, seeds []openSeed, x *blob.Index, m memory, f *planFlags) ([]seed.Seed, error) {
	var usable []seed.Seed
	for _, s := range seeds {
		held, err := s.learn(ctx, x, m, f)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			warnSeed(s.name, err)
			continue
		}
		usable = append(usable, seed.Seed{Name: s.name, Index: held, Data: s.file})
	}
	return usable, nil
}

func (s openSeed) learn(ctx context.Context, x *blob.Index, m memory, f *planFlags) (*blob.Index, error) {
	if !s.index.IsZero() {
		held, err := s.readIndex(ctx, x, f.access)
		if err == nil {
			return held, nil
		}
		say("warning: seed %s is looked into: %v", s.name, err)
	}
	return m.look(ctx, s.name, s.file, x, f.common)
}

// readIndex reads the index that was given with the seed. One that cannot help to plan for x is an error.
func (s openSeed) readIndex(ctx context.Context, x *blob.Index, a access) (*blob.Index, error) {
	held, err := readAnyIndex(ctx, s.index, a)
	if err != nil {
		return nil, err
	}
	why := unlike(held, x)
	if release.KindOf(s.index, held) == release.Tree {
		why = "is of a directory tree"
	}
	if why != "" {
		return nil, fmt.Errorf("its index %s %s", s.index, why)
	}
	return held, nil
}

// unlike says why an index shares no chunks with x, whatever the images hold, but by chance; "" if there is no reason.
func unlike(held, x *blob.Index) string {
	switch {
	case held.Algorithm() != x.Algorithm():
		return fmt.Sprintf("has %v digests, not %v", held.Algorithm(), x.Algorithm())
	case held.Params() != x.Params():
		return fmt.Sprintf("has chunks of %s bytes, not %s", sizesOf(held), sizesOf(x))
	}
	return ""
}

// sizesOf are the chunk sizes MIN:AVG:MAX that an index was made with.
func sizesOf(x *blob.Index) string {
	p := x.Params()
	return fmt.Sprintf("%d:%d:%d", p.Min, p.Avg, p.Max)
}
