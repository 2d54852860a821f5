package export

import (
	"context"
	"errors"
	"sync"

	"cairn/nbd"
)

// unopened is an image that is not open.
type unopened struct {
	described nbd.Export // its device cannot be read
	memory    int64      // bytes that the open image takes, about, besides its chunks
	// open opens the image as an export. It returns the function that closes it. Without onDisk it
	// opens no files.
	open func(ctx context.Context, onDisk bool) (e *nbd.Export, shut func(), err error)
}

// version is a version of a file's image. Its first client opens it. It stays open while it is the
// present version, within imageLimits, and after that until its last client disconnects. The
// directory's mutex guards it.
type version struct {
	described nbd.Export  // for Describe; its device cannot be read
	memory    int64       // of unopened
	opened    *nbd.Export // nil before the first client
	close     func()
	onDisk    bool // it has files open
	clients   int
	lastUse   int64 // directory.uses at the last use
	retired   bool  // the file has been replaced or removed
}

// openVersion opens the image of a version that is not open, and lends it. The caller holds the lock
// of the file's name.
func (d *directory) openVersion(ctx context.Context, v *version, image *unopened) (*nbd.Export, error) {
	if err := ctx.Err(); err != nil {
		return nil, err // the client is gone
	}
	if err := d.beginOpening(); err != nil {
		return nil, err
	}
	defer d.opening.Done()
	onDisk := d.acquireFiles()
	e, shut, err := image.open(ctx, onDisk)
	if err != nil {
		d.releaseFiles(onDisk)
		return nil, err
	}
	d.mu.Lock()
	defer d.unlock()
	v.opened, v.onDisk = e, onDisk
	v.close = func() {
		shut()
		d.releaseFiles(onDisk)
	}
	lent := d.lend(v)
	d.closeExcess()
	return lent, nil
}

var errClosed = errors.New("the server is stopping")

// beginOpening counts an image that is being opened.
func (d *directory) beginOpening() error {
	d.mu.Lock()
	defer d.unlock()
	if d.closed {
		return errClosed
	}
	d.opening.Add(1)
	return nil
}

// lend returns the export of an open version for one client.
func (d *directory) lend(v *version) *nbd.Export {
	v.clients++
	d.noteUse(v)
	lent := *v.opened
	lent.Release = sync.OnceFunc(func() { d.releaseVersion(v) })
	return &lent
}

// releaseVersion is called when a client of the version has disconnected.
func (d *directory) releaseVersion(v *version) {
	d.mu.Lock()
	defer d.unlock()
	v.clients--
	d.noteUse(v)
	switch {
	case v.clients > 0:
	case v.retired:
		delete(d.retired, v.described.Canonical)
		d.closeImage(v)
	default:
		d.closeExcess()
	}
}

// retireVersion closes a version that is replaced or removed, now or when its last client disconnects.
func (d *directory) retireVersion(v *version) {
	if v == nil {
		return
	}
	v.retired = true
	if v.clients == 0 {
		d.closeImage(v)
	} else {
		d.retired[v.described.Canonical] = v
	}
}

// closeImage closes the image of a version when mu is released.
func (d *directory) closeImage(v *version) {
	if v.opened != nil {
		d.closers = append(d.closers, v.close)
	}
	v.opened, v.close = nil, nil
}
