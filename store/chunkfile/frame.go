package chunkfile

import (
	"encoding/binary"
	"errors"
	"slices"
)

var (
	errNotFrame      = errors.New("it is not a zstd frame")
	errFrameShort    = errors.New("its zstd frame ends too early")
	errFrameDamaged  = errors.New("the structure of its zstd frame is damaged")
	errFrameTrailing = errors.New("bytes follow its zstd frame")
)

// IsZstdFrame reports whether file is exactly one zstd frame, a form that every reader of chunk stores can decode.
func IsZstdFrame(file []byte) bool { return checkOneFrame(file) == nil }

// checkOneFrame checks that packed is one zstd frame from its first byte to its last (RFC 8878,
// 3.1.1). A zstd decoder would also accept a sequence of frames, but a chunk is one frame.
// checkOneFrame does not check the content of the blocks.
func checkOneFrame(packed []byte) error {
	const checksum = 1 << 2
	at, err := frameHeaderSize(packed)
	if err != nil {
		return err
	}
	for last := false; !last; {
		var size int
		if size, last, err = blockSize(packed[at:]); err != nil {
			return err
		}
		at += size
	}
	if packed[len(zstdMagic)]&checksum != 0 {
		at += 4
	}
	switch {
	case at > len(packed):
		return errFrameShort
	case at < len(packed):
		return errFrameTrailing
	}
	return nil
}

// frameHeaderSize returns the size of the frame's header, and checks that packed has all of it.
func frameHeaderSize(packed []byte) (size int, err error) {
	const single, reserved = 1 << 5, 1 << 3
	if len(packed) <= len(zstdMagic) || string(packed[:len(zstdMagic)]) != zstdMagic {
		return 0, errNotFrame
	}
	flags := packed[len(zstdMagic)]
	if flags&reserved != 0 {
		return 0, errFrameDamaged
	}
	contentSize := [4]int{0, 2, 4, 8}[flags>>6]
	if flags&single == 0 {
		size++ // the window descriptor
	} else if contentSize == 0 {
		contentSize = 1
	}
	size += len(zstdMagic) + 1 + [4]int{0, 1, 2, 4}[flags&3] + contentSize
	if size > len(packed) {
		return 0, errFrameShort
	}
	return size, nil
}

// blockSize returns the size of the block at the start of b with its header, and checks that b has
// all of it.
func blockSize(b []byte) (size int, last bool, err error) {
	const head, sameByte, reserved = 3, 1, 3
	if len(b) < head {
		return 0, false, errFrameShort
	}
	bits := uint32(binary.LittleEndian.Uint16(b)) | uint32(b[2])<<16
	size = head + int(bits>>3)
	switch bits >> 1 & 3 {
	case sameByte:
		size = head + 1
	case reserved:
		return 0, false, errFrameDamaged
	}
	if size > len(b) {
		return 0, false, errFrameShort
	}
	return size, bits&1 != 0, nil
}

// maxRawBlock is the size of the largest zstd block.
const maxRawBlock = 128 << 10

// appendRawFrame appends a frame that stores data uncompressed (RFC 8878, 3.1.1): the header of a
// single segment with its size, then raw blocks. The data has at least one byte and less than 4
// GiB.
func appendRawFrame(dst, data []byte) []byte {
	const last, blockHead = 1, 3 // a raw block has type 0
	dst = appendRawHeader(slices.Grow(dst, rawFrameSize(len(data))), len(data))
	for len(data) > 0 {
		block := data[:min(len(data), maxRawBlock)]
		data = data[len(block):]
		head := uint32(len(block)) << blockHead
		if len(data) == 0 {
			head |= last
		}
		dst = append(dst, byte(head), byte(head>>8), byte(head>>16))
		dst = append(dst, block...)
	}
	return dst
}

// appendRawHeader appends the header of a frame of one segment, with the size in as few bytes as
// possible.
func appendRawHeader(dst []byte, size int) []byte {
	const single, twoBytes, fourBytes = 1 << 5, 1 << 6, 2 << 6
	dst = append(dst, zstdMagic...)
	switch {
	case size < 1<<8:
		return append(dst, single, byte(size))
	case size < 1<<16+1<<8: // the two-byte size has an offset of 256
		return binary.LittleEndian.AppendUint16(append(dst, single|twoBytes), uint16(size-1<<8))
	}
	return binary.LittleEndian.AppendUint32(append(dst, single|fourBytes), uint32(size))
}

// rawFrameSize returns an upper bound of the size of a frame of raw blocks.
func rawFrameSize(size int) int {
	const head, blockHead = len(zstdMagic) + 1 + 4, 3
	return head + size + (size/maxRawBlock+1)*blockHead
}
