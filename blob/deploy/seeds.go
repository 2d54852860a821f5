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

// Place locates a seed: a file, device or partition in the form that disk.Resolve accepts, or a
// directory of images.
type Place struct {
	Path  string
	Index locate.Location // of the seed's content; the zero value is none
}

// openSeed is an open seed whose content is not known yet.
type openSeed struct {
	name  string
	index locate.Location // zero for none
	file  *blockdev.File
}

// openSeeds opens the seeds. A seed that cannot be opened for any reason is left out, which costs only
// a download.
func (o *Options) openSeeds() (seeds []openSeed) {
	for _, place := range o.Seeds {
		more, err := o.openSeedsAt(place)
		seeds = append(seeds, more...)
		if err != nil {
			o.emitNote(SeedLeftOut{place.Path, err})
		}
	}
	return seeds
}

// openSeedsAt opens a seed, or all images in a directory.
func (o *Options) openSeedsAt(place Place) ([]openSeed, error) {
	if info, err := os.Stat(place.Path); err == nil && info.IsDir() {
		return o.openSeedDir(place.Path)
	}
	at, err := disk.Resolve(place.Path)
	if err != nil {
		return nil, err
	}
	if at.Note != "" {
		o.emitNote(SeedFound{place.Path, at.Note})
	}
	f, err := blockdev.OpenRead(at.Path, at.Section)
	if err != nil {
		return nil, err
	}
	return []openSeed{{place.Path, place.Index, f}}, nil
}

// openSeedDir opens the files in a directory as seeds. Those that cannot be opened are left out.
// IMAGE.caibx is the index of IMAGE.
func (o *Options) openSeedDir(dir string) (seeds []openSeed, err error) {
	entries, err := os.ReadDir(dir) // entries may be incomplete after an error
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if !e.Type().IsRegular() || strings.HasSuffix(path, release.IndexSuffix) || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		f, err := blockdev.OpenRead(path, blockdev.Section{})
		if err != nil {
			o.emitNote(SeedLeftOut{path, err})
			continue
		}
		s := openSeed{name: path, file: f}
		// The directory's user did not name this file: a FIFO would block, as a FIFO that is named may.
		if info, err := os.Stat(path + release.IndexSuffix); err == nil && info.Mode().IsRegular() {
			s.index = locate.Path(path + release.IndexSuffix)
		}
		seeds = append(seeds, s)
	}
	return seeds, err
}

// learnSeeds returns the seeds with indexes of their content, cut as x is. The index is given with the
// seed, is recalled from State, or comes from a scan. An unreadable seed is left out.
func (p *Plan) learnSeeds(ctx context.Context, x *blob.Index, l learner) (usable []seed.Seed, err error) {
	for _, s := range p.opened {
		held := l.readSeedIndex(ctx, s, x)
		if held == nil {
			held, err = l.recallOrScan(ctx, s.name, s.file, x)
		}
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil:
			l.emitNote(SeedLeftOut{s.name, err})
		default:
			usable = append(usable, seed.Seed{Name: s.name, Index: held, Data: s.file})
		}
		err = nil
	}
	return usable, nil
}

// readSeedIndex returns the index that was given with a seed, or nil if there is none or it is
// unusable.
func (o *Options) readSeedIndex(ctx context.Context, s openSeed, x *blob.Index) *blob.Index {
	if s.index.IsZero() {
		return nil
	}
	held, err := release.Open(ctx, o.Releases, s.index)
	if err != nil {
		o.emitNote(IndexLeftOut{s.name, err})
		return nil
	}
	why := Unlike(held, x)
	if release.KindOf(s.index, held) == release.Tree {
		why = "is of a directory tree"
	}
	if why != "" {
		o.emitNote(IndexLeftOut{s.name, fmt.Errorf("its index %s %s", s.index, why)})
		return nil
	}
	return held
}

// Unlike returns why held cannot share chunks with x except by chance, whatever the images hold. It
// returns "" if it can.
func Unlike(held, x *blob.Index) string {
	switch {
	case held.Algorithm() != x.Algorithm():
		return fmt.Sprintf("has %v digests, not %v", held.Algorithm(), x.Algorithm())
	case held.Params() != x.Params():
		return fmt.Sprintf("has chunks of %v bytes, not %v", held.Params(), x.Params())
	}
	return ""
}
