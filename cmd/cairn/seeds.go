package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"cairn/blob"
	"cairn/internal/blockdev"
	"cairn/internal/disk"
	"cairn/seed"
)

// openSeed is a seed that is open, and not yet looked into.
type openSeed struct {
	name  string
	index string // where its index is, or ""
	file  *blockdev.File
}

// openSeeds opens the seeds that the flags name; closeSeeds ends their use.
func openSeeds(texts []string) ([]openSeed, error) {
	var seeds []openSeed
	for _, text := range texts {
		location, index := splitSeed(text, exists)
		more, err := openSeedsAt(location, index)
		seeds = append(seeds, more...)
		if err != nil {
			closeSeeds(seeds)
			return nil, hintError{fmt.Errorf("opening seed %s: %w", location, err), "leave the seed out, or name one that is there"}
		}
	}
	return seeds, nil
}

func closeSeeds(seeds []openSeed) {
	for _, s := range seeds {
		s.file.Close()
	}
}

// openSeedsAt opens a seed, or all the images in a directory.
func openSeedsAt(location, index string) ([]openSeed, error) {
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

// openSeedDir opens the files in a directory as seeds. An index beside an image, IMAGE.caibx, is the image's.
func openSeedDir(dir string) (seeds []openSeed, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if !e.Type().IsRegular() || strings.HasSuffix(path, indexSuffix) || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		f, err := blockdev.OpenRead(path, blockdev.Section{})
		if err != nil {
			return seeds, err
		}
		s := openSeed{name: path, file: f}
		if exists(path + indexSuffix) {
			s.index = path + indexSuffix
		}
		seeds = append(seeds, s)
	}
	return seeds, nil
}

const indexSuffix = ".caibx"

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// splitSeed parts PATH=INDEX, where both parts may hold "=" and the index may be missing.
func splitSeed(text string, exists func(string) bool) (location, index string) {
	rest := text
	for _, tag := range []string{"PARTLABEL=", "PARTUUID="} {
		rest = strings.TrimPrefix(rest, tag)
	}
	cut := strings.LastIndexByte(rest, '=')
	if cut < 0 || exists(text) {
		return text, ""
	}
	at := len(text) - len(rest) + cut
	return text[:at], text[at+1:]
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
			say("warning: seed %s is not used: %v", s.name, err)
			continue
		}
		usable = append(usable, seed.Seed{Name: s.name, Index: held, Data: s.file})
	}
	return usable, nil
}

func (s openSeed) learn(ctx context.Context, x *blob.Index, m memory, f *planFlags) (*blob.Index, error) {
	if s.index != "" {
		held, err := readIndex(ctx, s.index, f.access)
		switch {
		case err != nil:
			say("warning: seed %s is looked into: %v", s.name, err)
		case held.Algorithm() != x.Algorithm():
			say("warning: seed %s is looked into: its index %s has %v digests, not %v", s.name, s.index, held.Algorithm(), x.Algorithm())
		default:
			return held, nil
		}
	}
	return m.look(ctx, s.name, s.file, x, f.common)
}
