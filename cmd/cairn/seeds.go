package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"cairn/blob"
	"cairn/blob/scan"
	"cairn/chunker"
	"cairn/internal/blockdev"
	"cairn/seed"
)

// openSeed is a seed and the file it is read from.
type openSeed struct {
	seed.Seed
	file *blockdev.File
}

// openSeeds opens the seeds that the flags name, without looking into them; close ends their use.
func openSeeds(texts []string) (seeds []openSeed, close func(), err error) {
	close = func() {
		for _, s := range seeds {
			s.file.Close()
		}
	}
	for _, text := range texts {
		location, _ := splitSeed(text, exists)
		f, err := openImage(location)
		if err != nil {
			close()
			return nil, nil, hintError{fmt.Errorf("opening seed %s: %w", location, err), "leave the seed out, or name one that is there"}
		}
		seeds = append(seeds, openSeed{seed.Seed{Name: location, Data: f}, f})
	}
	return seeds, close, nil
}

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
// seed, or by scanning it. A seed that cannot be used is left out with a warning: it costs a download.
func learn(ctx context.Context, seeds []openSeed, texts []string, x *blob.Index, f common) ([]seed.Seed, error) {
	var usable []seed.Seed
	for i, s := range seeds {
		_, index := splitSeed(texts[i], exists)
		known, err := s.learn(ctx, index, x, f)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			say("warning: seed %s is not used: %v", s.Name, err)
			continue
		}
		s.Index = known
		usable = append(usable, s.Seed)
	}
	return usable, nil
}

func (s openSeed) learn(ctx context.Context, index string, x *blob.Index, f common) (*blob.Index, error) {
	if index != "" {
		known, err := readIndex(ctx, index)
		switch {
		case err != nil:
			say("warning: seed %s is scanned: %v", s.Name, err)
		case known.Algorithm() != x.Algorithm():
			say("warning: seed %s is scanned: its index %s has %v digests, not %v", s.Name, index, known.Algorithm(), x.Algorithm())
		default:
			return known, nil
		}
	}
	p := newProgress(f.progress, "scanning "+s.Name, s.file.Size())
	defer p.end()
	o := scan.Like(x)
	o.Workers = f.jobs
	o.Progress = func(st scan.Stats) { p.show(st.Size, "", st) }
	known, _, err := scan.Image(ctx, chunker.FromReaderAt(s.file, s.file.Size()), o)
	return known, err
}
