package export

import (
	"context"

	"cairn/nbd"
	"cairn/store/locate"
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

func (v *version) closeImage() {
	if v.opened != nil {
		v.close()
	}
	v.opened, v.close = nil, nil
}

// openVersion opens the present version of a file, which may have changed since it was read. If
// name is a canonical name, it returns that version or an error.
func (d *directory) openVersion(ctx context.Context, f *indexFile, name string) (*version, error) {
	known := f.version
	export, shut, err := d.open(ctx, locate.Path(f.path))
	if err != nil {
		return nil, err
	}
	d.setVersion(f, export)
	v := f.version
	if v.opened == nil {
		v.opened, v.close = export, shut
	} else {
		shut()
	}
	if name == known.described.Canonical && v != known {
		return nil, errUnknown(name)
	}
	return v, nil
}

// retireVersion closes a version that is replaced or removed, now or when its last client disconnects.
func (d *directory) retireVersion(v *version) {
	if v == nil {
		return
	}
	v.retired = true
	if v.clients == 0 {
		v.closeImage()
	} else {
		d.retired[v.described.Canonical] = v
	}
}
