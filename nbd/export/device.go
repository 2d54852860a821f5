package export

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"cairn/blob"
	"cairn/blob/release"
	"cairn/blob/view"
	"cairn/nbd"
	"cairn/store/locate"
)

// The units in which clients measure a device: the kernel drops a partial sector, and qemu rounds
// it up. The kernel reads a squashfs in blocks of 1024 bytes, and does not mount one with a partial
// last block.
const (
	sector        = 512
	squashfsBlock = 1024
)

// paddedSize returns the size of a device for an image of n bytes. It does not pad whole sectors,
// because the backup partition table of a disk must be at the end of the disk.
func paddedSize(n int64) int64 {
	if n%sector == 0 {
		return n
	}
	return (n + squashfsBlock - 1) / squashfsBlock * squashfsBlock
}

// contextCached is the metadata context in which bit 0 marks bytes that a read gets without the
// store. Bit 1 marks those of them that only a seed may have. Bit 2 marks other bytes, which a delta may make.
const (
	contextCached = "x-cairn:cached"
	stateCached   = 1 << 0
	stateInSeed   = 1 << 1
	stateInDelta  = 1 << 2
)

// device is an image as a device of the NBD server. Zeros pad the last sector, so that all clients
// see the same size.
type device struct{ *view.Image }

var (
	_ nbd.Device     = device{}
	_ nbd.Extenter   = device{}
	_ nbd.Describer  = device{}
	_ nbd.Prefetcher = device{}
	_ nbd.Resident   = device{}
)

// newExport returns the export of an image with its device.
func newExport(index locate.Location, x *blob.Index, d nbd.Device) *nbd.Export {
	name, digest := nameOf(index), x.Digest().String()
	return &nbd.Export{
		Name:        name,
		Canonical:   name + "@" + digest,
		Description: fmt.Sprintf("%s, an image of %d bytes, index digest %s", name, x.Size(), digest),
		Device:      d,
		ReadOnly:    true,
		MultiConn:   true,
	}
}

// nameOf returns the name of an index's export: its file name without the suffix.
func nameOf(index locate.Location) string {
	_, name, err := index.Split()
	if err != nil {
		return index.String()
	}
	return strings.TrimSuffix(name, release.IndexSuffix)
}

// Size implements nbd.Device.
func (d device) Size() int64 { return paddedSize(d.Image.Size()) }

// imageBytes returns the number of bytes of the image in the n bytes at off. The rest is padding.
func (d device) imageBytes(off, n int64) int64 { return min(n, max(d.Image.Size()-off, 0)) }

// clearPadding clears the padding in p, which is read at off, and returns the image's part of p.
func (d device) clearPadding(p []byte, off int64) []byte {
	n := d.imageBytes(off, int64(len(p)))
	clear(p[n:])
	return p[:n]
}

// ReadAt implements nbd.Device.
func (d device) ReadAt(ctx context.Context, p []byte, off int64) error {
	if p = d.clearPadding(p, off); len(p) == 0 {
		return nil
	}
	return d.Image.ReadAt(ctx, p, off)
}

// ReadResident implements nbd.Resident.
func (d device) ReadResident(p []byte, off int64) bool {
	p = d.clearPadding(p, off)
	return len(p) == 0 || d.Image.ReadResident(p, off)
}

// Prefetch implements nbd.Prefetcher.
func (d device) Prefetch(ctx context.Context, off, n int64) error {
	if n = d.imageBytes(off, n); n == 0 {
		return nil
	}
	return d.Image.Prefetch(ctx, off, n)
}

// Extents implements nbd.Extenter.
func (d device) Extents(off, n int64) iter.Seq[nbd.Extent] {
	return func(yield func(nbd.Extent) bool) {
		for length, zero := range padRuns(d, d.Image.Extents, off, n, true) {
			if !yield(nbd.Extent{Length: length, Zero: zero}) {
				return
			}
		}
	}
}

// Contexts implements nbd.Describer.
func (d device) Contexts() []string { return []string{contextCached} }

// States implements nbd.Describer.
func (d device) States(_ string, off, n int64) iter.Seq[nbd.State] {
	return func(yield func(nbd.State) bool) {
		bits := map[view.Tier]uint32{view.Local: stateCached, view.InSeed: stateCached | stateInSeed, view.InDelta: stateInDelta}
		for length, tier := range padRuns(d, d.Tiers, off, n, view.Local) {
			if !yield(nbd.State{Length: length, Bits: bits[tier]}) {
				return
			}
		}
	}
}

// padRuns yields the runs of the n bytes at off of a device. The padding is one run with the value of
// zeros.
func padRuns[T any](
	d device, runs func(off, n int64) iter.Seq2[int64, T], off, n int64, zeros T,
) iter.Seq2[int64, T] {
	return func(yield func(int64, T) bool) {
		inside := d.imageBytes(off, n)
		if inside > 0 {
			for length, is := range runs(off, inside) {
				if !yield(length, is) {
					return
				}
			}
		}
		if inside < n {
			yield(n-inside, zeros)
		}
	}
}

// closedDevice is the device of an image that is not open, for clients that request information
// about it.
type closedDevice struct {
	device
	size int64 // padded
}

// Size implements nbd.Device.
func (d closedDevice) Size() int64 { return d.size }
