// Package export is the serve job: it offers images over NBD under the names of their indexes. A
// Catalogue has the images of given indexes, and the images of the index files in a directory,
// which may change. It opens an image of the directory for its first client, prefetches the chunks
// of a boot profile, and records such profiles. It knows nothing of flags, sockets or terminals.
package export

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"cairn/blob"
	"cairn/blob/profile"
	"cairn/blob/release"
	"cairn/blob/view/fetch"
	"cairn/internal/loglimit"
	"cairn/nbd"
	"cairn/seed/learn"
	"cairn/store/locate"
	"cairn/store/supply"
)

// Options configure a Catalogue. The zero value of each field is its default.
type Options struct {
	Indexes []locate.Location // images that are open until Close; the first is the default export
	// Accept is called with each index before its image is served; its error refuses the index. Nil accepts all.
	Accept    func(x *blob.Index) error
	Directory string // directory whose index files are exports too; "" for none

	Access release.Access      // to indexes, profiles and stores
	Stores [][]locate.Location // groups of equal stores, in order; none is the default store beside each index
	Supply supply.Options      // limits of the stores
	Hold   time.Duration       // how long reads and Open wait for unavailable stores; 0 is for ever

	Seeds []learn.Opened // local files that may hold chunks of the images; the caller closes them after Close
	Learn learn.Options  // how the content of Seeds is learned
	// NoDelta ignores the deltas beside remote stores. Otherwise chunks are made from them and Seeds.
	NoDelta bool

	Memory     int64  // bytes of chunks in memory, of all images together
	Cache      string // directory of images on disk; "" for none
	CacheLimit int64  // bytes on disk of all images; 0 is the cache's default
	Files      int    // descriptors for the images of Directory in Cache; 0 is no limit

	Profile     locate.Location // boot profile to prefetch; if it is missing or invalid, images do not open
	AutoProfile bool            // prefetch the profile NAME.caprf beside an index NAME.caibx, if it exists
	Fill        bool            // fetch all of the images while no client reads; needs Cache
	FillRate    int64           // bytes a second of Fill, at most; 0 is no limit

	// Record saves the profile of an image's reads so far. It is called every 15 s if there are new
	// reads, and by Close. Nil records nothing.
	Record     func(ctx context.Context, p *profile.Profile) error
	RecordTime time.Duration // the recording ends this long after its first read; 0 is no limit
	RecordOnce bool          // call Record in Close only

	Log   *slog.Logger    // messages for the operator; nil discards them
	Notes func(note Note) // called with events that the user should know of at once; nil ignores them

	// IndexMemory is called with the estimated memory in bytes of all open images, besides chunks, when
	// it changes. Calls do not overlap. Nil ignores it.
	IndexMemory func(bytes int64)
}

// Note is a MemoryNote, KindNote, ProfileNote or WaitNote.
type Note interface{ isNote() }

// MemoryNote means that an image is kept in memory only, and not in Options.Cache. A zero Index
// means all images.
type MemoryNote struct {
	Index locate.Location
	Err   error
}

// KindNote means that an index may not be the index of an image.
type KindNote struct {
	Index locate.Location
	Kind  release.Kind
}

// ProfileNote means that an image is served without its profile.
type ProfileNote struct {
	Later bool // the profile is followed as soon as it is available
	Err   error
}

// WaitNote means that Open waits for an unavailable index, once for each attempt, or that the wait
// is over.
type WaitNote struct {
	Index locate.Location
	Over  bool
}

func (MemoryNote) isNote()  {}
func (KindNote) isNote()    {}
func (ProfileNote) isNote() {}
func (WaitNote) isNote()    {}

// Error is the reason why an image did not open. Its text is the text of Err.
type Error struct {
	Part Part
	Err  error
}

// Part is the part of an image that did not open.
type Part int

// The parts.
const (
	Index Part = iota
	Stores
)

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Catalogue has the exports of a server. It is safe for concurrent use.
type Catalogue struct {
	images    *images
	fixed     []*nbd.Export
	static    *nbd.Static // of fixed
	directory *directory  // nil without one
}

var _ nbd.Exports = (*Catalogue)(nil)

// Open opens the images of the indexes, and the directory. It retries unavailable indexes for Hold.
// The caller must call Close.
func Open(ctx context.Context, o Options) (*Catalogue, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Log = slog.New(loglimit.NewHandler(o.Log.Handler(), new(loglimit.Limiter)))
	if o.Notes == nil {
		o.Notes = func(Note) {}
	}
	if o.Hold == 0 {
		o.Hold = fetch.ForEver
	}
	c := &Catalogue{images: newImages(o)}
	if err := c.openAll(ctx, o); err != nil {
		c.images.closeAll()
		return nil, err
	}
	return c, nil
}

func (c *Catalogue) openAll(ctx context.Context, o Options) (err error) {
	for _, index := range o.Indexes {
		e, err := c.images.openImage(ctx, index)
		if err != nil {
			return err
		}
		c.fixed = append(c.fixed, e)
	}
	if c.static, err = nbd.NewStatic(c.fixed...); err != nil || o.Directory == "" {
		return err
	}
	c.directory, err = openDirectory(o.Directory, c.images.readFile, newImageLimits(o), o.Log)
	return err
}

// Run scans the directory every 2 s until ctx ends, so that new and invalid index files are logged
// soon. Without a directory it returns at once.
func (c *Catalogue) Run(ctx context.Context) {
	if c.directory != nil {
		c.directory.scanRepeatedly(ctx)
	}
}

// Close cancels all fetches, saves the recordings, and closes all images. All clients must have
// disconnected.
func (c *Catalogue) Close() {
	if c.directory != nil {
		c.directory.closeVersions()
	}
	c.images.closeAll()
}

// Names returns the permanent names: those of the given indexes. With a directory it also returns
// "", which stands for the names of the directory's files.
func (c *Catalogue) Names() (names []string) {
	for _, e := range c.fixed {
		names = append(names, e.Name)
	}
	if c.directory != nil {
		names = append(names, "")
	}
	return names
}

// Open implements nbd.Exports. The images of the given indexes take precedence over those of the
// directory.
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

// All implements nbd.Exports. Of two exports with the same name, it lists the one that Open
// returns.
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

// openExports returns the open exports. Of several with the same name, the first is the one that
// the name means now.
func (c *Catalogue) openExports() []*nbd.Export {
	all := slices.Clone(c.fixed)
	if c.directory != nil {
		all = append(all, c.directory.openExports()...)
	}
	return all
}
