package learn

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"cairn/blob/release"
	"cairn/internal/blockdev"
	"cairn/internal/disk"
	"cairn/store/locate"
)

// Opened is an open seed whose content is not known yet.
type Opened struct {
	Name  string
	Index locate.Location // of the content; the zero value is none
	File  *blockdev.File
}

// Open opens the seeds at the places. A seed that cannot be opened for any reason is left out, which
// costs only a download.
func (o Options) Open(places []Place) (seeds []Opened) {
	for _, place := range places {
		more, err := o.openAt(place)
		seeds = append(seeds, more...)
		if err != nil {
			o.emitNote(SeedLeftOut{place.Path, err})
		}
	}
	return seeds
}

// Close closes the files of seeds.
func Close(seeds []Opened) {
	for _, s := range seeds {
		s.File.Close()
	}
}

// openAt opens a seed, or all images in a directory.
func (o Options) openAt(place Place) ([]Opened, error) {
	info, err := os.Stat(place.Path)
	switch {
	case err == nil && info.IsDir():
		return o.openDir(place.Path)
	case err == nil && info.Mode().IsRegular() && strings.HasSuffix(place.Path, release.IndexSuffix):
		return nil, fmt.Errorf("it is an index, which has no data; IMAGE=%s is the seed IMAGE with this index", place.Path)
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
	return []Opened{{place.Path, place.Index, f}}, nil
}

// openDir opens the files in a directory as seeds. Those that cannot be opened are left out.
// IMAGE.caibx is the index of IMAGE.
func (o Options) openDir(dir string) (seeds []Opened, err error) {
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
		s := Opened{Name: path, File: f}
		// The directory's user did not name this file: a FIFO would block, as a FIFO that is named may.
		if info, err := os.Stat(path + release.IndexSuffix); err == nil && info.Mode().IsRegular() {
			s.Index = locate.Path(path + release.IndexSuffix)
		}
		seeds = append(seeds, s)
	}
	return seeds, err
}
