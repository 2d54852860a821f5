package export

import (
	"context"
	"errors"
	"fmt"
	"io"
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

	"golang.org/x/sys/unix"

	"cairn/blob/release"
	"cairn/internal/rotate"
	"cairn/nbd"
	"cairn/store/locate"
)

const (
	scanInterval = 2 * time.Second
	checkTimeout = 5 * time.Second // time that a scan waits for one file
	maxFiles     = 4096            // index files of a directory that are exports
)

// indexReader reads an index from its file.
type indexReader func(index locate.Location, file io.Reader) (*unopened, error)

// directory offers the index files of a directory as exports. Each request of a client checks the
// file, so that a name always means the present content. A client keeps the version that it has
// opened. Until it disconnects, other clients can open that version by its canonical name.
//
// The files may be on a file system that does not answer, and images are opened with requests to
// servers. So mu is never held during I/O. A file is read, and its version replaced or opened, with
// the lock of its name held.
type directory struct {
	path   string
	read   indexReader
	limits imageLimits
	log    *slog.Logger
	calls  fileCalls

	opening sync.WaitGroup // images that are being opened

	mu      sync.Mutex            // guards the fields below, their files and versions; unlock releases it
	closed  bool                  // no image is opened any more
	files   map[string]*indexFile // by name
	retired map[string]*version   // versions that are replaced or removed but in use, by canonical name
	onDisk  int                   // images that have files open
	uses    int64                 // of versions, so far
	closers []func()              // close images; called by unlock
}

var _ nbd.Exports = (*directory)(nil)

// indexFile is an index file of the directory.
type indexFile struct {
	path    string
	info    fs.FileInfo // of the last read; nil before it
	version *version    // last valid version; nil without one
	invalid error       // why the present content is not used
}

func openDirectory(path string, read indexReader, limits imageLimits, log *slog.Logger) (*directory, error) {
	if _, err := os.ReadDir(path); err != nil {
		return nil, fmt.Errorf("watching a directory: %w", err)
	}
	return &directory{path: path, read: read, limits: limits, log: log, calls: newFileCalls(),
		files: make(map[string]*indexFile), retired: make(map[string]*version)}, nil
}

// unlock releases mu, and closes the images that are not used any more.
func (d *directory) unlock() {
	closers := d.closers
	d.closers = nil
	d.mu.Unlock()
	for _, shut := range closers {
		shut()
	}
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
	defer d.unlock()
	var all []nbd.Listing
	for _, name := range slices.Sorted(maps.Keys(d.files)) {
		if v := d.files[name].version; v != nil {
			all = append(all, nbd.Listing{Name: v.described.Name, Description: v.described.Description})
		}
	}
	return all, nil
}

// scanFiles refreshes all files, first those that are removed.
func (d *directory) scanFiles(ctx context.Context) error {
	var entries []fs.DirEntry
	_, err := d.calls.callAs(ctx, "", func() (_ *nbd.Export, err error) {
		entries, err = os.ReadDir(d.path)
		return nil, err
	})
	if err != nil {
		return err
	}
	present := make(map[string]bool)
	for _, e := range entries {
		name, is := strings.CutSuffix(e.Name(), release.IndexSuffix)
		if is && isName(name) && len(present) < maxFiles {
			present[name] = true
		}
	}
	for _, name := range d.knownNames() {
		if !present[name] {
			d.refreshFile(ctx, name)
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

func (d *directory) knownNames() []string {
	d.mu.Lock()
	defer d.unlock()
	return slices.Sorted(maps.Keys(d.files))
}

// refreshFile checks a file for changes. It leaves out a file that does not answer, and an export
// that another goroutine checks or opens.
func (d *directory) refreshFile(ctx context.Context, name string) {
	fileCtx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	call := d.calls.callAs
	if d.hasVersion(name) || d.calls.isLate(name) {
		call = d.calls.tryCallAs
	}
	_, err := call(fileCtx, name, func() (*nbd.Export, error) {
		_, _, err := d.checkFile(fileCtx, name, false)
		return nil, err
	})
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		d.log.Warn("an index file cannot be checked: its file system does not answer", "file", d.pathOf(name))
	}
}

// Open implements nbd.Exports.
func (d *directory) Open(ctx context.Context, name string) (*nbd.Export, error) {
	if _, lent, _ := d.lendIfOpen(nil, "", name); lent != nil {
		return lent, nil // replaced or removed: its file need not answer
	}
	return d.findExport(ctx, name, d.openFile)
}

// Describe implements nbd.Exports. It opens no image, because clients that list exports describe
// all of them.
func (d *directory) Describe(ctx context.Context, name string) (*nbd.Export, error) {
	return d.findExport(ctx, name, d.describeFile)
}

// findExport returns the result of use for the file of a name or a canonical name.
func (d *directory) findExport(
	ctx context.Context, name string, use func(ctx context.Context, file, name string) (*nbd.Export, error),
) (*nbd.Export, error) {
	name, err := d.resolveEmpty(ctx, name)
	if err != nil {
		return nil, err
	}
	files := []string{name}
	if at := strings.LastIndexByte(name, '@'); at > 0 {
		files = append(files, name[:at])
	}
	for _, file := range files {
		e, err := d.calls.callAs(ctx, file, func() (*nbd.Export, error) { return use(ctx, file, name) })
		if !errors.Is(err, errOtherFile) {
			return e, err
		}
	}
	return nil, errUnknown(name)
}

// openFile opens the export that a client selects by name, if it is a version of this file, and
// lends it to the client. The caller holds the lock of the file's name.
func (d *directory) openFile(ctx context.Context, file, name string) (*nbd.Export, error) {
	for again := false; ; again = true {
		f, image, invalid := d.checkFile(ctx, file, again)
		v, lent, err := d.lendIfOpen(f, file, name)
		switch {
		case err != nil || lent != nil:
			return lent, err
		case image != nil:
			return d.openVersion(ctx, v, image)
		case again:
			return nil, invalid
		}
	}
}

// lendIfOpen returns a version, and its export if it is open.
func (d *directory) lendIfOpen(f *indexFile, file, name string) (v *version, lent *nbd.Export, err error) {
	d.mu.Lock()
	defer d.unlock()
	if v, err = d.findVersion(f, file, name); err == nil && v.opened != nil {
		lent = d.lend(v)
	}
	return v, lent, err
}

// describeFile describes the export that a client names, if it is a version of this file. The
// caller holds the lock of the file's name.
func (d *directory) describeFile(ctx context.Context, file, name string) (*nbd.Export, error) {
	f, _, _ := d.checkFile(ctx, file, false)
	d.mu.Lock()
	defer d.unlock()
	v, err := d.findVersion(f, file, name)
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
	n := 0
	for _, name := range d.knownNames() {
		d.refreshFile(ctx, name)
		if d.hasVersion(name) {
			n++
		}
		if n > 1 {
			return true
		}
	}
	return false
}

func (d *directory) hasVersion(name string) bool {
	d.mu.Lock()
	defer d.unlock()
	f := d.files[name]
	return f != nil && f.version != nil
}

// errOtherFile means that a file has no version with the requested name.
var errOtherFile = errors.New("another file")

// findVersion returns the version of a file that a client names. f is nil if the file does not
// exist. A version that is replaced or removed but in use has its canonical name only.
func (d *directory) findVersion(f *indexFile, file, name string) (*version, error) {
	switch v := d.retired[name]; {
	case v != nil:
		return v, nil
	case f == nil:
		return nil, errOtherFile
	case file == name && f.version == nil:
		return nil, fmt.Errorf("%w: its index is invalid: %w", nbd.ErrUnknown, f.invalid)
	case file == name || f.version != nil && f.version.described.Canonical == name:
		return f.version, nil
	}
	return nil, errOtherFile
}

func errUnknown(name string) error { return fmt.Errorf("%w %q", nbd.ErrUnknown, name) }

// isName reports whether a file may be an export of that name. Clients choose names, so a name must
// not lead out of the directory. The protocol allows only UTF-8.
func isName(name string) bool {
	return name != "" && name[0] != '.' && filepath.Base(name) == name &&
		!strings.ContainsRune(name, 0) && utf8.ValidString(name)
}

func (d *directory) pathOf(name string) string {
	return filepath.Join(d.path, name+release.IndexSuffix)
}

// checkFile checks a file for changes and returns it, or nil if it does not exist. If it is changed,
// or with again, checkFile reads it and returns its image. An invalid index file keeps
// its last version, and is logged once. The caller holds the lock of the file's name.
func (d *directory) checkFile(ctx context.Context, name string, again bool) (f *indexFile, image *unopened, err error) {
	if !isName(name) {
		return nil, nil, nil
	}
	path := d.pathOf(name)
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() {
		d.forgetFile(name)
		return nil, nil, nil
	}
	f, mayAdd := d.lookUpFile(name)
	switch {
	case f == nil && !mayAdd:
		return nil, nil, nil
	case f != nil && f.info != nil && !again && rotate.IsUnchanged(f.info, info):
		return f, nil, nil
	}
	image, info, err = d.readFile(path)
	switch {
	case errors.Is(err, errSpecial):
		d.forgetFile(name)
		return nil, nil, nil
	case ctx.Err() != nil && err != nil:
		return f, nil, err
	}
	return d.noteContent(name, path, info, image, err), image, err
}

// lookUpFile returns a known file. mayAdd reports whether there is room for another one.
func (d *directory) lookUpFile(name string) (f *indexFile, mayAdd bool) {
	d.mu.Lock()
	defer d.unlock()
	return d.files[name], len(d.files) < maxFiles
}

// errSpecial means that a file is not a regular one.
var errSpecial = errors.New("not a regular file")

// readFile reads an index file. The file may have been replaced since it was checked, so opening
// does not block if it is a FIFO. info is nil if the file cannot be opened.
func (d *directory) readFile(path string) (image *unopened, info fs.FileInfo, err error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	defer file.Close()
	if info, err = file.Stat(); err == nil && !info.Mode().IsRegular() {
		err = errSpecial
	}
	if err != nil {
		return nil, nil, err
	}
	image, err = d.read(locate.Path(path), file)
	return image, info, err
}

// noteContent records the content of a file, which is valid unless err is set. A file that could not
// be opened is read again by the next check.
func (d *directory) noteContent(name, path string, info fs.FileInfo, image *unopened, err error) *indexFile {
	d.mu.Lock()
	defer d.unlock()
	f := d.files[name]
	if f == nil {
		f = &indexFile{path: path}
		d.files[name] = f
	}
	before := f.invalid
	f.info, f.invalid = info, err
	switch {
	case err == nil:
		d.setVersion(f, image)
	case info != nil || before == nil || before.Error() != err.Error():
		d.log.Warn("an index is ignored", "file", path, "err", err)
	}
	return f
}

// setVersion makes an image the present version of a file.
func (d *directory) setVersion(f *indexFile, image *unopened) {
	canonical := image.described.Canonical
	if f.version != nil && f.version.described.Canonical == canonical {
		return
	}
	d.retireVersion(f.version)
	if f.version = d.retired[canonical]; f.version != nil {
		delete(d.retired, canonical) // rolled back to an open version
		f.version.retired = false
	} else {
		f.version = &version{described: image.described, memory: image.memory}
	}
	d.log.Info("an index is published", "file", f.path, "export", canonical)
}

func (d *directory) forgetFile(name string) {
	d.mu.Lock()
	defer d.unlock()
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
	defer d.unlock()
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
	d.closed = true
	d.unlock()
	d.opening.Wait()
	d.mu.Lock()
	defer d.unlock()
	for _, f := range d.files {
		if f.version != nil {
			d.closeImage(f.version)
		}
	}
}
