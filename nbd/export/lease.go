package export

import (
	"context"
	"maps"
	"slices"
	"sync"

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

func newVersion(export *nbd.Export) *version {
	listed := *export
	listed.Device = closedDevice{size: export.Device.Size()}
	return &version{listed: listed}
}

// setOpened takes over an export that was opened, unless the version is open already.
func (v *version) setOpened(export *nbd.Export, shut func()) {
	if v.opened != nil {
		shut()
		return
	}
	v.opened, v.close = export, shut
}

func (v *version) shut() {
	if v.opened != nil {
		v.close()
	}
	v.opened, v.close = nil, nil
}

// lendFile lends the present version of a file, and opens it if it is closed. A client that asks for one version by
// its canonical name gets that version or none.
func (d *directory) lendFile(ctx context.Context, f *indexFile, name string) (*nbd.Export, error) {
	canonical := f.version.listed.Canonical
	if f.version.opened == nil {
		export, shut, err := d.open(ctx, locate.Path(f.path))
		if err != nil {
			return nil, err
		}
		d.setVersion(f, export) // the file may have changed since it was read
		f.version.setOpened(export, shut)
	}
	if name == canonical && f.version.listed.Canonical != canonical {
		return nil, errUnknown(name)
	}
	return d.lend(f.version), nil
}

// lend lends an open version to a client.
func (d *directory) lend(v *version) *nbd.Export {
	v.clients++
	lent := *v.opened
	lent.Release = sync.OnceFunc(func() { d.takeBack(v) })
	return &lent
}

func (d *directory) takeBack(v *version) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v.clients--
	if v.retired && v.clients == 0 {
		delete(d.leased, v.listed.Canonical)
		v.shut()
	}
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
