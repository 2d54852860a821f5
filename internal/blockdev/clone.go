package blockdev

import (
	"errors"
	"fmt"
	"io"
)

// CloneFrom makes n bytes at dstOff of the target equal to those at srcOff of src, a regular file on the same
// file system. Whole blocks are shared on the medium (FICLONERANGE) and take no space until one side is
// written. The rest is copied. cloned is the number of shared bytes.
//
// The error is errors.ErrUnsupported, and nothing has changed, for devices, across file systems, for offsets
// that differ modulo the block size, and for ranges without a whole block. The caller then copies. Others may
// change src meanwhile: read the result from the target and hash it.
func (t *Target) CloneFrom(src *File, srcOff, dstOff, n int64) (cloned int64, err error) {
	if err := errors.Join(src.checkRange(srcOff, n), t.checkRange(dstOff, n)); err != nil {
		return 0, fmt.Errorf("cloning from %s to %s: %w", src.path, t.path, err)
	}
	cloned, err = t.cloneFrom(src, src.offset()+srcOff, t.offset()+dstOff, n)
	if err != nil {
		return 0, fmt.Errorf("cloning %d bytes at %d of %s to %s: %w", n, srcOff, src.path, t.path, err)
	}
	return cloned, nil
}

// cloneFrom is CloneFrom with offsets of the files instead of the sections.
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

// copyFrom copies n bytes, less than a block.
func (t *Target) copyFrom(src *File, srcOff, dstOff, n int64) error {
	_, err := io.CopyN(io.NewOffsetWriter(t.f, dstOff), io.NewSectionReader(src.f, srcOff, n), n)
	return err
}

// wholeBlocks returns the whole blocks of the range from lo to hi. There are none if first >= last.
func wholeBlocks(lo, hi, block int64) (first, last int64) {
	return (lo + block - 1) / block * block, hi / block * block
}
