// Package export is the serve job: images offered over NBD by the names of their indexes. A Catalogue has the images of
// given indexes, and those of the index files in a directory as they come and go. It opens an image for its first
// client, with the chunks of a boot profile fetched before they are read, and records such profiles. It knows nothing
// of flags, sockets or terminals.
package export

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"cairn/blob/profile"
	"cairn/blob/release"
	"cairn/blob/view/fetch"
	"cairn/nbd"
	"cairn/store/locate"
	"cairn/store/supply"
)

// Options say what a Catalogue offers, and how. The zero value of a field is its default.
type Options struct {
	Indexes   []locate.Location // of images that are open until Close; the first is the default export
	Directory string            // whose index files are exports too; "" for none

	Access release.Access      // to indexes, profiles and stores
	Stores [][]locate.Location // groups that stand in for each other, in order; none is the default beside each index
	Supply supply.Options      // limits of the stores
	Hold   time.Duration       // how long reads, and Open, wait for stores that do not answer; 0 is for ever

	Memory     int64  // bytes of chunks in memory, of all images together
	Cache      string // directory of images on disk; "" for none
	CacheLimit int64  // bytes on disk of all images; 0 is the cache's default

	Profile     locate.Location // of a boot profile that is fetched first; an image is not opened if there is none
	AutoProfile bool            // fetch the profile NAME.caprf beside an index NAME.caibx first, if there is one
	Fill        bool            // fetch all of the images while no client reads; needs Cache
	FillRate    int64           // bytes a second that Fill fetches at most; 0 is no limit

	// Record saves a profile of what was read of an image so far: now and then, and at Close. Nil records nothing.
	Record     func(ctx context.Context, p *profile.Profile) error
	RecordTime time.Duration // after the first read that is recorded; 0 is no limit
	RecordOnce bool          // call Record at Close only

	Log   *slog.Logger    // gets what an operator may want to know
	Notes func(note Note) // is told what the user may want to know at once
}

// Note is one of MemoryNote, KindNote, ProfileNote and WaitNote.
type Note interface{ isNote() }

// MemoryNote says that an image, or if Index is zero all of them, is kept in memory only, and not in Options.Cache.
type MemoryNote struct {
	Index locate.Location
	Err   error
}

// KindNote says that an index may not be an image's.
type KindNote struct {
	Index locate.Location
	Kind  release.Kind
}

// ProfileNote says that an image is served without its profile: for now, or for good.
type ProfileNote struct {
	Later bool // the profile is followed as soon as it can be read
	Err   error
}

// WaitNote says that Open waits for an index that cannot be reached, or that this is over. It comes at each attempt.
type WaitNote struct {
	Index locate.Location
	Over  bool
}

func (MemoryNote) isNote()  {}
func (KindNote) isNote()    {}
func (ProfileNote) isNote() {}
func (WaitNote) isNote()    {}

// Error says why an image is not opened. It has the text of Err.
type Error struct {
	Part Part
	Err  error
}

// Part is a part of an image that cannot be opened.
type Part int

// The parts.
const (
	Index Part = iota
	Stores
)

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Catalogue is the exports of a server. Safe for concurrent use.
type Catalogue struct {
	images    *images
	fixed     []*nbd.Export
	static    *nbd.Static // of fixed
	directory *directory  // nil without one
}

var _ nbd.Exports = (*Catalogue)(nil)

// Open opens the images of the indexes, and the directory. An index whose server does not answer is waited for. The
// caller must Close.
func Open(ctx context.Context, o Options) (*Catalogue, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Notes == nil {
		o.Notes = func(Note) {}
	}
	if o.Hold == 0 {
		o.Hold = fetch.ForEver
	}
	c := &Catalogue{images: newImages(o)}
	if err := c.open(ctx, o); err != nil {
		c.images.close()
		return nil, err
	}
	return c, nil
}

func (c *Catalogue) open(ctx context.Context, o Options) (err error) {
	for _, index := range o.Indexes {
		e, _, err := c.images.open(ctx, index)
		if err != nil {
			return err
		}
		c.fixed = append(c.fixed, e)
	}
	if c.static, err = nbd.NewStatic(c.fixed...); err != nil || o.Directory == "" {
		return err
	}
	c.directory, err = openDirectory(o.Directory, c.images.open, o.Log)
	return err
}

// Run scans the directory now and then until ctx ends, so that the log soon tells what is new. Without a directory it
// returns at once.
func (c *Catalogue) Run(ctx context.Context) {
	if c.directory != nil {
		c.directory.scanRepeatedly(ctx)
	}
}

// Close ends all fetches, saves the recording, and closes all images. No client may be left.
func (c *Catalogue) Close() {
	if c.directory != nil {
		c.directory.shut()
	}
	c.images.close()
}

// Names returns the names that stay: those of the given indexes, and with a directory "", which stands for the names
// that clients ask for.
func (c *Catalogue) Names() (names []string) {
	for _, e := range c.fixed {
		names = append(names, e.Name)
	}
	if c.directory != nil {
		names = append(names, "")
	}
	return names
}

// Open implements nbd.Exports. The images of the given indexes come before those of the directory.
func (c *Catalogue) Open(ctx context.Context, name string) (*nbd.Export, error) {
	e, err := c.static.Open(ctx, name)
	if c.directory != nil && errors.Is(err, nbd.ErrUnknown) {
		return c.directory.Open(ctx, name)
	}
	return e, err
}

// Describe implements nbd.Exports.
func (c *Catalogue) Describe(ctx context.Context, name string) (*nbd.Export, error) {
	e, err := c.static.Describe(ctx, name)
	if c.directory != nil && errors.Is(err, nbd.ErrUnknown) {
		return c.directory.Describe(ctx, name)
	}
	return e, err
}

// All implements nbd.Exports. Of two exports with one name it lists the one that Open returns.
func (c *Catalogue) All(ctx context.Context) ([]nbd.Listing, error) {
	all, err := c.static.All(ctx)
	if err != nil || c.directory == nil {
		return all, err
	}
	files, err := c.directory.All(ctx)
	isHidden := func(l nbd.Listing) bool {
		return slices.ContainsFunc(c.fixed, func(e *nbd.Export) bool { return e.Name == l.Name })
	}
	return append(slices.Clip(all), slices.DeleteFunc(files, isHidden)...), err
}

// opened returns the exports that are open. Of several with one name, the first is the one that the name means now.
func (c *Catalogue) opened() []*nbd.Export {
	all := slices.Clone(c.fixed)
	if c.directory != nil {
		all = append(all, c.directory.opened()...)
	}
	return all
}
