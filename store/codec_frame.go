package store

import (
	"encoding/binary"
	"errors"
)

var (
	errFrameNone    = errors.New("it is no zstd frame")
	errFrameShort   = errors.New("its zstd frame ends too early")
	errFrameDamaged = errors.New("the structure of its zstd frame is damaged")
	errFrameMore    = errors.New("bytes follow its zstd frame")
)

// oneFrame checks that packed is one zstd frame from its first byte to its last (RFC 8878, 3.1.1). Decoders
// read as many as there are, but a chunk is one, whoever decodes it. What the blocks hold is not looked at.
func oneFrame(packed []byte) error {
	const checksum = 1 << 2
	at, err := frameHead(packed)
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
		return errFrameMore
	}
	return nil
}

// frameHead is the size of the frame's head, all of which is there.
func frameHead(packed []byte) (size int, err error) {
	const single, reserved = 1 << 5, 1 << 3
	if len(packed) <= len(zstdMagic) || string(packed[:len(zstdMagic)]) != zstdMagic {
		return 0, errFrameNone
	}
	flags := packed[len(zstdMagic)]
	if flags&reserved != 0 {
		return 0, errFrameDamaged
	}
	contentSize := [4]int{0, 2, 4, 8}[flags>>6]
	if flags&single == 0 {
		size++ // the window's
	} else if contentSize == 0 {
		contentSize = 1
	}
	size += len(zstdMagic) + 1 + [4]int{0, 1, 2, 4}[flags&3] + contentSize
	if size > len(packed) {
		return 0, errFrameShort
	}
	return size, nil
}

// blockSize is what the block that begins b takes with its head, all of which is there.
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
