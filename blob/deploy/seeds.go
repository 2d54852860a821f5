package deploy

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"cairn/blob"
	"cairn/blob/release"
	"cairn/internal/blockdev"
	"cairn/internal/disk"
	"cairn/seed"
	"cairn/store/locate"
)

// Place is where a seed is: a file, device or partition as disk.Resolve takes it, or a directory of images.
type Place struct {
	Path  string
	Index locate.Location // of what the seed holds; the zero value is none
}

// openSeed is a seed that is open, and not yet looked into.
type openSeed struct {
	name  string
	index locate.Location // or none
	file  *blockdev.File
}

// openSeeds opens the seeds. One that cannot be opened, for whatever reason, is left out: it costs a download.
func (o *Options) openSeeds() (seeds []openSeed) {
	for _, place := range o.Seeds {
		more, err := o.openSeedsAt(place)
		seeds = append(seeds, more...)
		if err != nil {
			o.note(SeedLeftOut{place.Path, err})
		}
	}
	return seeds
}

// openSeedsAt opens a seed, or all the images in a directory.
func (o *Options) openSeedsAt(place Place) ([]openSeed, error) {
	if info, err := os.Stat(place.Path); err == nil && info.IsDir() {
		return o.openSeedDir(place.Path)
	}
	at, err := disk.Resolve(place.Path)
	if err != nil {
		return nil, err
	}
	if at.Note != "" {
		o.note(SeedFound{place.Path, at.Note})
	}
	f, err := blockdev.OpenRead(at.Path, at.Section)
	if err != nil {
		return nil, err
	}
	return []openSeed{{place.Path, place.Index, f}}, nil
}

// openSeedDir opens the files in a directory as seeds, as far as they can be. An index beside an image, IMAGE.caibx, is
// the image's.
func (o *Options) openSeedDir(dir string) (seeds []openSeed, err error) {
	entries, err := os.ReadDir(dir) // with an error some may be known
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if !e.Type().IsRegular() || strings.HasSuffix(path, release.IndexSuffix) || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		f, err := blockdev.OpenRead(path, blockdev.Section{})
		if err != nil {
			o.note(SeedLeftOut{path, err})
			continue
		}
		s := openSeed{name: path, file: f}
		if _, err := os.Stat(path + release.IndexSuffix); err == nil {
			s.index = locate.Path(path + release.IndexSuffix)
		}
		seeds = append(seeds, s)
	}
	return seeds, err
}

// learnSeeds finds out what the seeds hold, cut as x is: from the index given with a seed, from memory, or by scanning
// it. A seed that cannot be read is left out.
func (p *Plan) learnSeeds(ctx context.Context, x *blob.Index, m memory) (usable []seed.Seed, err error) {
	for _, s := range p.opened {
		held := m.readSeedIndex(ctx, s, x)
		if held == nil {
			held, err = m.recallOrScan(ctx, s.name, s.file, x)
		}
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil:
			m.note(SeedLeftOut{s.name, err})
		default:
			usable = append(usable, seed.Seed{Name: s.name, Index: held, Data: s.file})
		}
		err = nil
	}
	return usable, nil
}

// readSeedIndex returns the index that was given with a seed, or nil.
func (o *Options) readSeedIndex(ctx context.Context, s openSeed, x *blob.Index) *blob.Index {
	if s.index.IsZero() {
		return nil
	}
	held, err := release.Open(ctx, o.Releases, s.index)
	if err != nil {
		o.note(IndexLeftOut{s.name, err})
		return nil
	}
	why := Unlike(held, x)
	if release.KindOf(s.index, held) == release.Tree {
		why = "is of a directory tree"
	}
	if why != "" {
		o.note(IndexLeftOut{s.name, fmt.Errorf("its index %s %s", s.index, why)})
		return nil
	}
	return held
}

// Unlike says why an index shares chunks with x by chance only, whatever the images hold; "" if there is no reason.
func Unlike(held, x *blob.Index) string {
	switch {
	case held.Algorithm() != x.Algorithm():
		return fmt.Sprintf("has %v digests, not %v", held.Algorithm(), x.Algorithm())
	case held.Params() != x.Params():
		return fmt.Sprintf("has chunks of %v bytes, not %v", held.Params(), x.Params())
	}
	return ""
}
