package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"cairn/blob/release"
	"cairn/nbd"
	"cairn/store/locate"
)

const (
	watchInterval = 2 * time.Second
	maxWatched    = 4096 // indexes in one directory
)

// opener makes an export of an index file, and returns what closes it.
type opener func(ctx context.Context, index locate.Location) (*nbd.Export, func(), error)

// watch is the index files of a directory as exports. A file is looked at whenever a client asks for it, so
// that a name always means what the directory holds then. A client keeps the image that it has opened, and while one
// does, others find that image too under its name with the digest.
type watch struct {
	dir  string
	open opener
	log  *slog.Logger

	mu     sync.Mutex             // guards what follows; held while an index is read
	files  map[string]*indexFile  // by name
	leased map[string]*watchedOne // replaced or removed, and still in use; by canonical name
}

var _ nbd.Exports = (*watch)(nil)

// indexFile is a file of the directory.
type indexFile struct {
	path    string
	state   fileState   // when it was looked at last
	image   *watchedOne // the last whole one; nil if there was none
	trouble error       // what is wrong with what is there now
}

// watchedOne is one version of an image.
type watchedOne struct {
	face      nbd.Export // what clients are told of it
	canonical string
	export    *nbd.Export // nil until the first client uses it
	close     func()
	clients   int
	retired   bool // the file is another image by now, or gone
}

func newWatch(dir string, open opener, log *slog.Logger) (*watch, error) {
	if _, err := os.ReadDir(dir); err != nil {
		return nil, fmt.Errorf("watching a directory: %w", err)
	}
	return &watch{dir: dir, open: open, log: log, files: make(map[string]*indexFile), leased: make(map[string]*watchedOne)}, nil
}

// run looks at the directory now and then, so that the log soon tells what is new in it, or no good.
func (w *watch) run(ctx context.Context) {
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	for {
		if err := w.scan(ctx); err != nil && ctx.Err() == nil {
			w.log.Warn("the directory of indexes cannot be read", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// All lists the images that are there now.
func (w *watch) All(ctx context.Context) ([]nbd.Listing, error) {
	if err := w.scan(ctx); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []nbd.Listing
	for _, name := range slices.Sorted(maps.Keys(w.files)) {
		if image := w.files[name].image; image != nil {
			all = append(all, nbd.Listing{Name: image.face.Name, Description: image.face.Description})
		}
	}
	return all, nil
}

func (w *watch) scan(ctx context.Context) error {
	entries, err := os.ReadDir(w.dir)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	present := make(map[string]bool)
	for _, e := range entries {
		name, is := strings.CutSuffix(e.Name(), release.IndexSuffix)
		if !is || !nameable(name) || len(present) == maxWatched {
			continue
		}
		present[name] = true
		w.look(ctx, name)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	for name := range w.files {
		if !present[name] {
			w.forget(name)
		}
	}
	return nil
}

// Open opens an image.
func (w *watch) Open(ctx context.Context, name string) (*nbd.Export, error) {
	name, err := w.resolveEmpty(ctx, name)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	image, f, err := w.find(ctx, name)
	switch {
	case err != nil:
		return nil, err
	case f == nil:
		return w.lend(image), nil
	}
	return w.lendFile(ctx, f, name)
}

// Describe finds an image and opens nothing: clients that list a server's exports ask about every one of them.
func (w *watch) Describe(ctx context.Context, name string) (*nbd.Export, error) {
	name, err := w.resolveEmpty(ctx, name)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	image, _, err := w.find(ctx, name)
	if err != nil {
		return nil, err
	}
	face := image.face
	return &face, nil
}

// resolveEmpty returns the name that clients mean. The empty name is that of the only image.
func (w *watch) resolveEmpty(ctx context.Context, name string) (string, error) {
	switch {
	case name != "":
		return name, nil
	case w.hasSeveral(ctx):
		return "", fmt.Errorf("%w \"\" (there are several exports, name one)", nbd.ErrUnknown)
	}
	all, err := w.All(ctx)
	if err != nil {
		return "", err
	}
	if len(all) != 1 {
		return "", fmt.Errorf("%w \"\" (there are %d exports)", nbd.ErrUnknown, len(all))
	}
	return all[0].Name, nil
}

// hasSeveral reports whether two of the known images are there. It spares the look at a whole directory: a client may ask
// for the empty name as often as it may ask about all exports.
func (w *watch) hasSeveral(ctx context.Context) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for name := range w.files {
		if f := w.look(ctx, name); f != nil && f.image != nil {
			n++
		}
		if n > 1 {
			return true
		}
	}
	return false
}

// find finds an image by its name, or by its name and digest, and the file that it is. The file is nil if it is another
// image by now: then clients have the image open.
func (w *watch) find(ctx context.Context, name string) (*watchedOne, *indexFile, error) {
	if image := w.leased[name]; image != nil {
		return image, nil, nil
	}
	if f := w.look(ctx, name); f != nil {
		if f.image == nil {
			return nil, nil, fmt.Errorf("%w: its index is no good: %w", nbd.ErrUnknown, f.trouble)
		}
		return f.image, f, nil
	}
	if at := strings.LastIndexByte(name, '@'); at > 0 {
		if f := w.look(ctx, name[:at]); f != nil && f.image != nil && f.image.canonical == name {
			return f.image, f, nil
		}
	}
	return nil, nil, unknown(name)
}

func unknown(name string) error { return fmt.Errorf("%w %q", nbd.ErrUnknown, name) }

// nameable says whether a file may be an export by that name. Clients choose names: none may lead out of the
// directory. The protocol has names of UTF-8 only.
func nameable(name string) bool {
	return name != "" && name[0] != '.' && filepath.Base(name) == name && !strings.ContainsRune(name, 0) && utf8.ValidString(name)
}

// look brings up to date what is known of a file, and returns it, nil if there is none. A file that is no whole
// index changes nothing; the log tells once.
func (w *watch) look(ctx context.Context, name string) *indexFile {
	if !nameable(name) {
		return nil
	}
	path := filepath.Join(w.dir, name+release.IndexSuffix)
	state := stateOf(path)
	if state.info == nil || !state.info.Mode().IsRegular() {
		w.forget(name)
		return nil
	}
	f := w.files[name]
	if f == nil {
		f = &indexFile{path: path}
		w.files[name] = f
	}
	if f.state.same(state) {
		return f
	}
	export, shut, err := w.open(ctx, locate.Path(path))
	if ctx.Err() != nil && err != nil {
		return f // it was not looked at
	}
	f.state, f.trouble = state, err
	if err != nil {
		w.log.Warn("an index is ignored", "file", path, "err", err)
		return f
	}
	shut() // until somebody wants it
	w.renew(f, export)
	return f
}

// renew notes that the file is this image now.
func (w *watch) renew(f *indexFile, export *nbd.Export) {
	if f.image != nil && f.image.canonical == export.Canonical {
		return
	}
	w.retire(f.image)
	if f.image = w.leased[export.Canonical]; f.image != nil {
		delete(w.leased, export.Canonical) // it is back, and open
		f.image.retired = false
	} else {
		face := *export
		face.Device = described{size: export.Device.Size()}
		f.image = &watchedOne{face: face, canonical: export.Canonical}
	}
	w.log.Info("an index is published", "file", f.path, "export", export.Canonical)
}

func (w *watch) forget(name string) {
	f := w.files[name]
	if f == nil {
		return
	}
	delete(w.files, name)
	w.retire(f.image)
	w.log.Info("an index is gone", "file", f.path)
}

// retire closes an image that no file is any more, now or when its last client leaves.
func (w *watch) retire(image *watchedOne) {
	switch {
	case image == nil:
	case image.clients == 0:
		image.retired = true
		image.shut()
	default:
		image.retired = true
		w.leased[image.canonical] = image
	}
}

// keep takes an export that was opened, unless the image is open already.
func (i *watchedOne) keep(export *nbd.Export, shut func()) {
	if i.export != nil {
		shut()
		return
	}
	i.export, i.close = export, shut
}

func (i *watchedOne) shut() {
	if i.export != nil {
		i.close()
	}
	i.export, i.close = nil, nil
}

// lendFile lends the image that a file is, and opens it if it is closed. A client that wants one image by its canonical
// name gets that or none.
func (w *watch) lendFile(ctx context.Context, f *indexFile, name string) (*nbd.Export, error) {
	canonical := f.image.canonical
	if f.image.export == nil {
		export, shut, err := w.open(ctx, locate.Path(f.path))
		if err != nil {
			return nil, err
		}
		w.renew(f, export) // it may have changed since it was looked at
		f.image.keep(export, shut)
	}
	if name == canonical && f.image.canonical != canonical {
		return nil, unknown(name)
	}
	return w.lend(f.image), nil
}

// lend lends an open image to a client.
func (w *watch) lend(image *watchedOne) *nbd.Export {
	image.clients++
	lent := *image.export
	lent.Release = sync.OnceFunc(func() { w.takeBack(image) })
	return &lent
}

func (w *watch) takeBack(image *watchedOne) {
	w.mu.Lock()
	defer w.mu.Unlock()
	image.clients--
	if image.retired && image.clients == 0 {
		delete(w.leased, image.canonical)
		image.shut()
	}
}

// shut closes all images. No client may be there any more.
func (w *watch) shut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.files {
		if f.image != nil {
			f.image.shut()
		}
	}
}

// chain is exports that come first, and others.
type chain struct{ first, then nbd.Exports }

var _ nbd.Exports = chain{}

// Open asks the first, and if it does not know the name the other.
func (c chain) Open(ctx context.Context, name string) (*nbd.Export, error) {
	export, err := c.first.Open(ctx, name)
	if errors.Is(err, nbd.ErrUnknown) {
		return c.then.Open(ctx, name)
	}
	return export, err
}

// Describe asks the first, and if it does not know the name the other.
func (c chain) Describe(ctx context.Context, name string) (*nbd.Export, error) {
	export, err := c.first.Describe(ctx, name)
	if errors.Is(err, nbd.ErrUnknown) {
		return c.then.Describe(ctx, name)
	}
	return export, err
}

// All lists both, and of two of a name the one that Open finds.
func (c chain) All(ctx context.Context) ([]nbd.Listing, error) {
	first, err := c.first.All(ctx)
	if err != nil {
		return nil, err
	}
	names := make(map[string]bool, len(first))
	for _, l := range first {
		names[l.Name] = true
	}
	then, err := c.then.All(ctx)
	hidden := func(l nbd.Listing) bool { return names[l.Name] }
	return append(slices.Clip(first), slices.DeleteFunc(then, hidden)...), err
}

// fileState tells a file from what it was before.
type fileState struct {
	modified time.Time
	size     int64
	info     fs.FileInfo
}

func (s fileState) same(other fileState) bool {
	return s.size == other.size && s.modified.Equal(other.modified) &&
		(s.info == nil) == (other.info == nil) && (s.info == nil || os.SameFile(s.info, other.info))
}

func stateOf(path string) fileState {
	info, err := os.Stat(path)
	if err != nil {
		return fileState{}
	}
	return fileState{info.ModTime(), info.Size(), info}
}
