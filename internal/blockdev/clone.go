package blockdev

import (
	"errors"
	"fmt"
	"io"
)

// CloneFrom makes n bytes at dstOff of the target those at srcOff of src, a regular file of the same file
// system: the whole blocks among them are shared on the medium (FICLONERANGE), and take no room until one
// side is written, the rest is copied. cloned is how many are shared. Where that is not possible (devices,
// other file systems, offsets that lie differently in their blocks, no whole block) the error is an
// errors.ErrUnsupported and nothing was changed: the caller copies. src may be changed meanwhile by others:
// what has arrived is to be read from the target, and hashed.
func (t *Target) CloneFrom(src *File, srcOff, dstOff, n int64) (cloned int64, err error) {
	if err := errors.Join(src.check(srcOff, n), t.check(dstOff, n)); err != nil {
		return 0, fmt.Errorf("cloning from %s to %s: %w", src.path, t.path, err)
	}
	cloned, err = t.cloneFrom(src, src.offset()+srcOff, t.offset()+dstOff, n)
	if err != nil {
		return 0, fmt.Errorf("cloning %d bytes at %d of %s to %s: %w", n, srcOff, src.path, t.path, err)
	}
	return cloned, nil
}

// cloneFrom takes offsets of the files, not of the sections.
func (t *Target) cloneFrom(src *File, srcOff, dstOff, n int64) (int64, error) {
	if t.device || src.device {
		return 0, errors.ErrUnsupported
	}
	block, err := blockSize(t.f)
	if err != nil {
		return 0, err
	}
	shift, end := srcOff-dstOff, dstOff+n
	first, last := wholeBlocks(dstOff, end, block)
	if shift%block != 0 || first >= last {
		return 0, errors.ErrUnsupported
	}
	if err := cloneRange(t.f, src.f, first+shift, first, last-first); err != nil {
		return 0, err
	}
	return last - first, errors.Join(
		t.copyFrom(src, srcOff, dstOff, first-dstOff),
		t.copyFrom(src, last+shift, last, end-last),
	)
}

// copyFrom copies less than a block.
func (t *Target) copyFrom(src *File, srcOff, dstOff, n int64) error {
	_, err := io.CopyN(io.NewOffsetWriter(t.f, dstOff), io.NewSectionReader(src.f, srcOff, n), n)
	return err
}

// wholeBlocks is the part of the bytes from lo to hi that is whole blocks; none if first >= last.
func wholeBlocks(lo, hi, block int64) (first, last int64) {
	return (lo + block - 1) / block * block, hi / block * block
}
