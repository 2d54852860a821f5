package export

import (
	"context"
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
	"cairn/internal/rotate"
	"cairn/nbd"
	"cairn/store/locate"
)

const (
	scanInterval = 2 * time.Second
	maxFiles     = 4096 // index files of a directory that are exports
)

// opener opens the image of an index as an export, and returns what closes it.
type opener func(ctx context.Context, index locate.Location) (*nbd.Export, func(), error)

// directory is the index files of a directory as exports. A file is looked at each time a client asks for it, so that a
// name always means what the directory holds at that moment. A client keeps the version that it has opened. As long as
// one does, others find that version too, under its name with the digest.
type directory struct {
	path string
	open opener
	log  *slog.Logger

	mu     sync.Mutex            // guards what follows; held while an index is read
	files  map[string]*indexFile // by name
	leased map[string]*version   // replaced or removed, and still in use; by canonical name
}

var _ nbd.Exports = (*directory)(nil)

// indexFile is a file of the directory.
type indexFile struct {
	path    string
	info    fs.FileInfo // when it was read last; nil if it never was
	version *version    // the last whole one; nil if there was none
	trouble error       // why the present content is not used
}

func openDirectory(path string, open opener, log *slog.Logger) (*directory, error) {
	if _, err := os.ReadDir(path); err != nil {
		return nil, fmt.Errorf("watching a directory: %w", err)
	}
	return &directory{path: path, open: open, log: log,
		files: make(map[string]*indexFile), leased: make(map[string]*version)}, nil
}

// scanRepeatedly scans the directory until ctx ends, so that the log soon tells of new and of invalid index files.
func (d *directory) scanRepeatedly(ctx context.Context) {
	ticker := time.NewTicker(scanInterval)
	defer ticker.Stop()
	for {
		if err := d.scan(ctx); err != nil && ctx.Err() == nil {
			d.log.Warn("the directory of indexes cannot be read", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// All implements nbd.Exports. It lists the present versions.
func (d *directory) All(ctx context.Context) ([]nbd.Listing, error) {
	if err := d.scan(ctx); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []nbd.Listing
	for _, name := range slices.Sorted(maps.Keys(d.files)) {
		if v := d.files[name].version; v != nil {
			all = append(all, nbd.Listing{Name: v.listed.Name, Description: v.listed.Description})
		}
	}
	return all, nil
}

// scan brings all files up to date.
func (d *directory) scan(ctx context.Context) error {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	present := make(map[string]bool)
	for _, e := range entries {
		name, is := strings.CutSuffix(e.Name(), release.IndexSuffix)
		if is && isName(name) && len(present) < maxFiles {
			present[name] = true
		}
	}
	for name := range d.files {
		if !present[name] {
			d.forget(name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(present)) {
		d.refresh(ctx, name)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// Open implements nbd.Exports.
func (d *directory) Open(ctx context.Context, name string) (*nbd.Export, error) {
	name, err := d.resolveEmpty(ctx, name)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	v, f, err := d.find(ctx, name)
	if err == nil && v.opened == nil {
		v, err = d.openVersion(ctx, f, name)
	}
	if err != nil {
		return nil, err
	}
	v.clients++
	lent := *v.opened
	lent.Release = sync.OnceFunc(func() { d.takeBack(v) })
	return &lent, nil
}

// takeBack notes that a client has left.
func (d *directory) takeBack(v *version) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v.clients--
	if v.retired && v.clients == 0 {
		delete(d.leased, v.listed.Canonical)
		v.shut()
	}
}

// Describe implements nbd.Exports. It opens no image: clients that list a server's exports describe every one of them.
func (d *directory) Describe(ctx context.Context, name string) (*nbd.Export, error) {
	name, err := d.resolveEmpty(ctx, name)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	v, _, err := d.find(ctx, name)
	if err != nil {
		return nil, err
	}
	listed := v.listed
	return &listed, nil
}

// resolveEmpty returns the name that a client means. The empty name stands for the only image.
func (d *directory) resolveEmpty(ctx context.Context, name string) (string, error) {
	switch {
	case name != "":
		return name, nil
	case d.hasSeveral(ctx):
		return "", fmt.Errorf("%w \"\" (there are several exports, name one)", nbd.ErrUnknown)
	}
	all, err := d.All(ctx)
	if err != nil {
		return "", err
	}
	if len(all) != 1 {
		return "", fmt.Errorf("%w \"\" (there are %d exports)", nbd.ErrUnknown, len(all))
	}
	return all[0].Name, nil
}

// hasSeveral reports whether two of the known images are there. It spares a scan of the directory: a client may ask
// for the empty name any number of times.
func (d *directory) hasSeveral(ctx context.Context) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for name := range d.files {
		if f := d.refresh(ctx, name); f != nil && f.version != nil {
			n++
		}
		if n > 1 {
			return true
		}
	}
	return false
}

// find returns a version by its name, or by its name and digest, and its file. The file is nil if it has been replaced
// or removed: then clients have the version open.
func (d *directory) find(ctx context.Context, name string) (*version, *indexFile, error) {
	if v := d.leased[name]; v != nil {
		return v, nil, nil
	}
	if f := d.refresh(ctx, name); f != nil {
		if f.version == nil {
			return nil, nil, fmt.Errorf("%w: its index is no good: %w", nbd.ErrUnknown, f.trouble)
		}
		return f.version, f, nil
	}
	if at := strings.LastIndexByte(name, '@'); at > 0 {
		f := d.refresh(ctx, name[:at])
		if v := d.leased[name]; v != nil {
			return v, nil, nil // refresh found that it is replaced
		}
		if f != nil && f.version != nil && f.version.listed.Canonical == name {
			return f.version, f, nil
		}
	}
	return nil, nil, errUnknown(name)
}

func errUnknown(name string) error { return fmt.Errorf("%w %q", nbd.ErrUnknown, name) }

// isName reports whether a file may be an export of that name. Clients choose names: none may lead out of the
// directory. The protocol has names of UTF-8 only.
func isName(name string) bool {
	return name != "" && name[0] != '.' && filepath.Base(name) == name &&
		!strings.ContainsRune(name, 0) && utf8.ValidString(name)
}

// refresh brings a file up to date and returns it, nil if there is none. A file that is not a whole index keeps its
// last version, and is logged once.
func (d *directory) refresh(ctx context.Context, name string) *indexFile {
	if !isName(name) {
		return nil
	}
	path := filepath.Join(d.path, name+release.IndexSuffix)
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() {
		d.forget(name)
		return nil
	}
	f := d.files[name]
	switch {
	case f == nil && len(d.files) == maxFiles:
		return nil
	case f == nil:
		f = &indexFile{path: path}
		d.files[name] = f
	case f.info != nil && rotate.IsUnchanged(f.info, info):
		return f
	}
	export, shut, err := d.open(ctx, locate.Path(path))
	if ctx.Err() != nil && err != nil {
		return f // it was not read
	}
	f.info, f.trouble = info, err
	if err != nil {
		d.log.Warn("an index is ignored", "file", path, "err", err)
		return f
	}
	shut() // until a client opens it
	d.setVersion(f, export)
	return f
}

// setVersion makes an export the present version of a file.
func (d *directory) setVersion(f *indexFile, export *nbd.Export) {
	if f.version != nil && f.version.listed.Canonical == export.Canonical {
		return
	}
	d.retire(f.version)
	if f.version = d.leased[export.Canonical]; f.version != nil {
		delete(d.leased, export.Canonical) // it is rolled back to, and open
		f.version.retired = false
	} else {
		f.version = &version{listed: *export}
		f.version.listed.Device = closedDevice{size: export.Device.Size()}
	}
	d.log.Info("an index is published", "file", f.path, "export", export.Canonical)
}

func (d *directory) forget(name string) {
	f := d.files[name]
	if f == nil {
		return
	}
	delete(d.files, name)
	d.retire(f.version)
	d.log.Info("an index is gone", "file", f.path)
}

// opened returns the exports that are open, the present versions first.
func (d *directory) opened() (all []*nbd.Export) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(d.files)) {
		if v := d.files[name].version; v != nil && v.opened != nil {
			all = append(all, v.opened)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.leased)) {
		all = append(all, d.leased[name].opened)
	}
	return all
}

// shut closes all versions. No client may be left.
func (d *directory) shut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.files {
		if f.version != nil {
			f.version.shut()
		}
	}
}
