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

// opener opens the image of an index as an export. It returns the function that closes it.
type opener func(ctx context.Context, index locate.Location) (*nbd.Export, func(), error)

// directory offers the index files of a directory as exports. Each request of a client checks the
// file, so that a name always means the present content. A client keeps the version that it has
// opened. Until it disconnects, other clients can open that version by its canonical name.
type directory struct {
	path string
	open opener
	log  *slog.Logger

	mu      sync.Mutex            // guards the fields below; held while an index is read
	files   map[string]*indexFile // by name
	retired map[string]*version   // versions that are replaced or removed but in use, by canonical name
}

var _ nbd.Exports = (*directory)(nil)

// indexFile is an index file of the directory.
type indexFile struct {
	path    string
	info    fs.FileInfo // of the last read; nil before it
	version *version    // last valid version; nil without one
	invalid error       // why the present content is not used
}

func openDirectory(path string, open opener, log *slog.Logger) (*directory, error) {
	if _, err := os.ReadDir(path); err != nil {
		return nil, fmt.Errorf("watching a directory: %w", err)
	}
	return &directory{path: path, open: open, log: log,
		files: make(map[string]*indexFile), retired: make(map[string]*version)}, nil
}

// scanRepeatedly scans the directory until ctx ends, so that new and invalid index files are logged
// soon.
func (d *directory) scanRepeatedly(ctx context.Context) {
	ticker := time.NewTicker(scanInterval)
	defer ticker.Stop()
	for {
		if err := d.scanFiles(ctx); err != nil && ctx.Err() == nil {
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
	if err := d.scanFiles(ctx); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []nbd.Listing
	for _, name := range slices.Sorted(maps.Keys(d.files)) {
		if v := d.files[name].version; v != nil {
			all = append(all, nbd.Listing{Name: v.described.Name, Description: v.described.Description})
		}
	}
	return all, nil
}

// scanFiles refreshes all files.
func (d *directory) scanFiles(ctx context.Context) error {
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
			d.forgetFile(name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(present)) {
		d.refreshFile(ctx, name)
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
	v, f, err := d.findVersion(ctx, name)
	if err == nil && v.opened == nil {
		v, err = d.openVersion(ctx, f, name)
	}
	if err != nil {
		return nil, err
	}
	v.clients++
	lent := *v.opened
	lent.Release = sync.OnceFunc(func() { d.releaseVersion(v) })
	return &lent, nil
}

// releaseVersion is called when a client of the version has disconnected.
func (d *directory) releaseVersion(v *version) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v.clients--
	if v.retired && v.clients == 0 {
		delete(d.retired, v.described.Canonical)
		v.closeImage()
	}
}

// Describe implements nbd.Exports. It opens no image, because clients that list exports describe
// all of them.
func (d *directory) Describe(ctx context.Context, name string) (*nbd.Export, error) {
	name, err := d.resolveEmpty(ctx, name)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	v, _, err := d.findVersion(ctx, name)
	if err != nil {
		return nil, err
	}
	listed := v.described
	return &listed, nil
}

// resolveEmpty returns the name that a client means. The empty name means the only image.
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

// hasSeveral reports whether at least two of the known images exist. It saves a scan of the
// directory, because a client may request the empty name any number of times.
func (d *directory) hasSeveral(ctx context.Context) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for name := range d.files {
		if f := d.refreshFile(ctx, name); f != nil && f.version != nil {
			n++
		}
		if n > 1 {
			return true
		}
	}
	return false
}

// findVersion returns a version and its file, by name or by canonical name. The file is nil if the
// version is replaced or removed; such a version is open.
func (d *directory) findVersion(ctx context.Context, name string) (*version, *indexFile, error) {
	if v := d.retired[name]; v != nil {
		return v, nil, nil
	}
	if f := d.refreshFile(ctx, name); f != nil {
		if f.version == nil {
			return nil, nil, fmt.Errorf("%w: its index is invalid: %w", nbd.ErrUnknown, f.invalid)
		}
		return f.version, f, nil
	}
	if at := strings.LastIndexByte(name, '@'); at > 0 {
		f := d.refreshFile(ctx, name[:at])
		if v := d.retired[name]; v != nil {
			return v, nil, nil // refreshFile has replaced it
		}
		if f != nil && f.version != nil && f.version.described.Canonical == name {
			return f.version, f, nil
		}
	}
	return nil, nil, errUnknown(name)
}

func errUnknown(name string) error { return fmt.Errorf("%w %q", nbd.ErrUnknown, name) }

// isName reports whether a file may be an export of that name. Clients choose names, so a name must
// not lead out of the directory. The protocol allows only UTF-8.
func isName(name string) bool {
	return name != "" && name[0] != '.' && filepath.Base(name) == name &&
		!strings.ContainsRune(name, 0) && utf8.ValidString(name)
}

// refreshFile checks a file for changes and returns it, or nil if it does not exist. An invalid
// index file keeps its last version, and is logged once.
func (d *directory) refreshFile(ctx context.Context, name string) *indexFile {
	if !isName(name) {
		return nil
	}
	path := filepath.Join(d.path, name+release.IndexSuffix)
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() {
		d.forgetFile(name)
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
		return f // the file was not read
	}
	f.info, f.invalid = info, err
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
	if f.version != nil && f.version.described.Canonical == export.Canonical {
		return
	}
	d.retireVersion(f.version)
	if f.version = d.retired[export.Canonical]; f.version != nil {
		delete(d.retired, export.Canonical) // rolled back to an open version
		f.version.retired = false
	} else {
		f.version = &version{described: *export}
		f.version.described.Device = closedDevice{size: export.Device.Size()}
	}
	d.log.Info("an index is published", "file", f.path, "export", export.Canonical)
}

func (d *directory) forgetFile(name string) {
	f := d.files[name]
	if f == nil {
		return
	}
	delete(d.files, name)
	d.retireVersion(f.version)
	d.log.Info("an index is gone", "file", f.path)
}

// openExports returns the open exports, the present versions first.
func (d *directory) openExports() (all []*nbd.Export) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(d.files)) {
		if v := d.files[name].version; v != nil && v.opened != nil {
			all = append(all, v.opened)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.retired)) {
		all = append(all, d.retired[name].opened)
	}
	return all
}

// closeVersions closes all versions. All clients must have disconnected.
func (d *directory) closeVersions() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.files {
		if f.version != nil {
			f.version.closeImage()
		}
	}
}
