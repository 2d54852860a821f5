package main

import (
	"context"
	"iter"

	"cairn/blob/view"
	"cairn/nbd"
)

// The units that clients measure a device in: the kernel leaves out what does not fill a sector, and qemu rounds up. The
// kernel reads a squashfs in blocks of 1024 bytes, and does not mount one whose last block is not whole.
const (
	sector        = 512
	squashfsBlock = 1024
)

// padded is the size of a device for an image of n bytes. Whole sectors are left as they are: a disk's backup
// partition table lies at the disk's very end.
func padded(n int64) int64 {
	if n%sector == 0 {
		return n
	}
	return (n + squashfsBlock - 1) / squashfsBlock * squashfsBlock
}

// contextCached is the metadata context in which bit 0 stands for bytes that a read has without the store.
const (
	contextCached = "x-cairn:cached"
	stateCached   = 1 << 0
)

// exported is an image as a device for the NBD server. Zeros behind the image's end fill the last sector, so that all
// clients see the same size.
type exported struct{ *view.Image }

var (
	_ nbd.Device     = exported{}
	_ nbd.Extenter   = exported{}
	_ nbd.Describer  = exported{}
	_ nbd.Prefetcher = exported{}
	_ nbd.Resident   = exported{}
)

// Size implements nbd.Device.
func (e exported) Size() int64 { return padded(e.Image.Size()) }

// ofImage is how many of the n bytes at off are the image's. The others are padding.
func (e exported) ofImage(off, n int64) int64 { return min(n, max(e.Image.Size()-off, 0)) }

// clearPadding clears the padding in p, which is read at off, and returns the image's part.
func (e exported) clearPadding(p []byte, off int64) []byte {
	n := e.ofImage(off, int64(len(p)))
	clear(p[n:])
	return p[:n]
}

// ReadAt implements nbd.Device.
func (e exported) ReadAt(ctx context.Context, p []byte, off int64) error {
	if p = e.clearPadding(p, off); len(p) == 0 {
		return nil
	}
	return e.Image.ReadAt(ctx, p, off)
}

// ReadResident implements nbd.Resident.
func (e exported) ReadResident(p []byte, off int64) bool {
	p = e.clearPadding(p, off)
	return len(p) == 0 || e.Image.ReadResident(p, off)
}

// Prefetch implements nbd.Prefetcher.
func (e exported) Prefetch(ctx context.Context, off, n int64) error {
	if n = e.ofImage(off, n); n == 0 {
		return nil
	}
	return e.Image.Prefetch(ctx, off, n)
}

// Extents implements nbd.Extenter.
func (e exported) Extents(off, n int64) iter.Seq[nbd.Extent] {
	return func(yield func(nbd.Extent) bool) {
		for length, zero := range e.runs(e.Image.Extents, off, n) {
			if !yield(nbd.Extent{Length: length, Zero: zero}) {
				return
			}
		}
	}
}

// Contexts implements nbd.Describer.
func (e exported) Contexts() []string { return []string{contextCached} }

// States implements nbd.Describer.
func (e exported) States(_ string, off, n int64) iter.Seq[nbd.State] {
	return func(yield func(nbd.State) bool) {
		for length, here := range e.runs(e.Cached, off, n) {
			s := nbd.State{Length: length}
			if here {
				s.Bits = stateCached
			}
			if !yield(s) {
				return
			}
		}
	}
}

// runs yields what is known of n bytes at off: of the image's, and true for the padding, which is zeros and needs no
// store.
func (e exported) runs(of func(off, n int64) iter.Seq2[int64, bool], off, n int64) iter.Seq2[int64, bool] {
	return func(yield func(int64, bool) bool) {
		inside := e.ofImage(off, n)
		if inside > 0 {
			for length, is := range of(off, inside) {
				if !yield(length, is) {
					return
				}
			}
		}
		if inside < n {
			yield(n-inside, true)
		}
	}
}

// described is an image that is not open, for clients that ask about it.
type described struct {
	exported
	size int64 // padded
}

// Size implements nbd.Device.
func (d described) Size() int64 { return d.size }
