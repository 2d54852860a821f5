package export

import (
	"context"

	"cairn/nbd"
	"cairn/store/locate"
)

// version is one version of a file's image. It is open from its first client on: as long as it is the file's present
// version, and after that until its last client leaves. The directory's mutex guards it.
type version struct {
	listed  nbd.Export  // as clients are told of it; its device cannot be read
	opened  *nbd.Export // nil until the first client
	close   func()
	clients int
	retired bool // the file has been replaced or removed
}

func (v *version) shut() {
	if v.opened != nil {
		v.close()
	}
	v.opened, v.close = nil, nil
}

// openVersion opens the present version of a file, which may have changed since it was read. A client that asks for one
// version by its canonical name gets that version or none.
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
	if name == known.listed.Canonical && v != known {
		return nil, errUnknown(name)
	}
	return v, nil
}

// retire closes a version that is no file's any more, now or when its last client leaves.
func (d *directory) retire(v *version) {
	if v == nil {
		return
	}
	v.retired = true
	if v.clients == 0 {
		v.shut()
	} else {
		d.leased[v.listed.Canonical] = v
	}
}
