package export

import (
	"cmp"
	"slices"
)

// filesPerImage is the number of descriptors that an open image in the cache takes: its data, its map
// and its lock.
const filesPerImage = 3

// maxIdle limits the open images without a client.
const maxIdle = 16

// imageLimits limit the open images of a directory, because each client that has ever chosen an
// export would keep its image open. The least recently used images without a client are closed.
type imageLimits struct {
	// onDisk is the number of images that have files open. If clients use as many, another image is
	// opened without files. 0 is no limit.
	onDisk int
	// idle is the memory of the images without a client, in bytes. The most recently used one may
	// have any size.
	idle int64
}

// newImageLimits returns the limits of the directory's images.
func newImageLimits(o Options) imageLimits {
	l := imageLimits{idle: o.Memory / 8}
	if o.Cache != "" && o.Files > 0 {
		l.onDisk = max(o.Files/filesPerImage, 1)
	}
	return l
}

// acquireFiles reports whether another image may have files open, and counts it. To make room, it
// closes images without a client.
func (d *directory) acquireFiles() bool {
	for {
		if ok, again := d.tryAcquireFiles(); !again {
			return ok
		}
	}
}

// tryAcquireFiles is acquireFiles, but reports again after it has closed an image.
func (d *directory) tryAcquireFiles() (ok, again bool) {
	d.mu.Lock()
	defer d.unlock()
	if d.limits.onDisk == 0 || d.onDisk < d.limits.onDisk {
		d.onDisk++
		return true, false
	}
	idle := d.idleVersions()
	if len(idle) == 0 {
		return false, false
	}
	d.closeImage(idle[len(idle)-1])
	return false, true
}

// releaseFiles is called when an image has closed its files.
func (d *directory) releaseFiles(onDisk bool) {
	d.mu.Lock()
	defer d.unlock()
	if onDisk {
		d.onDisk--
	}
}

func (d *directory) noteUse(v *version) {
	d.uses++
	v.lastUse = d.uses
}

// closeExcess closes images without a client that exceed the limits of their number and memory, or
// that could not have files, so that the next client may open them with files.
func (d *directory) closeExcess() {
	var memory int64
	for n, v := range d.idleVersions() {
		memory += v.memory
		if n > 0 && memory > d.limits.idle || n >= maxIdle || !v.onDisk {
			d.closeImage(v)
		}
	}
}

// idleVersions returns the open versions without a client, the most recently used first. It leaves
// out a version whose file is invalid by now, because it could not be opened again.
func (d *directory) idleVersions() (idle []*version) {
	for _, f := range d.files {
		if v := f.version; v != nil && v.opened != nil && v.clients == 0 && f.invalid == nil {
			idle = append(idle, v)
		}
	}
	slices.SortFunc(idle, func(a, b *version) int { return cmp.Compare(b.lastUse, a.lastUse) })
	return idle
}
