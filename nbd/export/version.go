package export

import (
	"context"
	"errors"
	"sync"

	"cairn/nbd"
)

// version is a version of a file's image. Its first client opens it. It stays open while it is the
// present version, and after that until its last client disconnects. The directory's mutex guards
// it.
type version struct {
	described nbd.Export  // for Describe; its device cannot be read
	opened    *nbd.Export // nil before the first client
	close     func()
	clients   int
	retired   bool // the file has been replaced or removed
}

// openVersion opens the image of a version that is not open, and lends it. The caller holds the lock
// of the file's name.
func (d *directory) openVersion(ctx context.Context, v *version, open opener) (*nbd.Export, error) {
	if err := d.beginOpening(); err != nil {
		return nil, err
	}
	defer d.opening.Done()
	e, shut, err := open(ctx)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.unlock()
	v.opened, v.close = e, shut
	return d.lend(v), nil
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
	lent := *v.opened
	lent.Release = sync.OnceFunc(func() { d.releaseVersion(v) })
	return &lent
}

// releaseVersion is called when a client of the version has disconnected.
func (d *directory) releaseVersion(v *version) {
	d.mu.Lock()
	defer d.unlock()
	v.clients--
	if v.retired && v.clients == 0 {
		delete(d.retired, v.described.Canonical)
		d.closeImage(v)
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
