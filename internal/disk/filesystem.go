package disk

import (
	"encoding/binary"
	"io"
	"math"
)

// FilesystemSize reads from the superblock at the start of r the kind of the file system (squashfs, ext2, ext3,
// ext4 or erofs) and its size in bytes. The bytes of a partition after that size are unused. ok is false for an
// unknown, unreadable or malformed superblock.
func FilesystemSize(r io.ReaderAt) (kind string, size int64, ok bool) {
	head := make([]byte, 1024+1024) // the superblocks of ext and erofs are at 1024
	n, err := r.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return "", 0, false
	}
	clear(head[n:])
	for _, read := range []func([]byte) (string, uint64){parseSquashfs, parseExt, parseErofs} {
		kind, size := read(head)
		if 0 < size && size <= math.MaxInt64 {
			return kind, int64(size), true
		}
	}
	return "", 0, false
}

var le = binary.LittleEndian

// parseSquashfs: fs/squashfs/squashfs_fs.h. mksquashfs pads to 4096 bytes, and the kernel reads whole blocks of them.
func parseSquashfs(head []byte) (string, uint64) {
	const pad = 4096
	used := le.Uint64(head[0x28:])
	if string(head[:4]) != "hsqs" || le.Uint16(head[0x1c:]) != 4 || used > math.MaxInt64-pad {
		return "", 0
	}
	return "squashfs", (used + pad - 1) / pad * pad
}

// parseExt: fs/ext4/ext4.h.
func parseExt(head []byte) (string, uint64) {
	const (
		compatJournal   = 0x4
		incompatExtents = 0x40
		incompat64      = 0x80
		maxLogBlock     = 6 // 64 KiB
	)
	sb := head[1024:]
	logBlock, incompat := le.Uint32(sb[0x18:]), le.Uint32(sb[0x60:])
	if le.Uint16(sb[0x38:]) != 0xef53 || logBlock > maxLogBlock {
		return "", 0
	}
	kind := "ext2"
	if le.Uint32(sb[0x5c:])&compatJournal != 0 {
		kind = "ext3"
	}
	if incompat&(incompatExtents|incompat64) != 0 {
		kind = "ext4"
	}
	blocks := uint64(le.Uint32(sb[0x4:]))
	if incompat&incompat64 != 0 {
		blocks |= uint64(le.Uint32(sb[0x150:])) << 32
	}
	return kind, blocksToBytes(blocks, 10+logBlock)
}

// parseErofs: fs/erofs/erofs_fs.h.
func parseErofs(head []byte) (string, uint64) {
	const (
		incompat48 = 0x80
		minLog     = 9
		maxLog     = 16
	)
	sb := head[1024:]
	logBlock := uint32(sb[0xc])
	if le.Uint32(sb) != 0xe0f5e1e2 || logBlock < minLog || logBlock > maxLog {
		return "", 0
	}
	blocks := uint64(le.Uint32(sb[0x24:]))
	if le.Uint32(sb[0x50:])&incompat48 != 0 {
		blocks |= uint64(le.Uint16(sb[0xe:])) << 32
	}
	return "erofs", blocksToBytes(blocks, logBlock)
}

// blocksToBytes returns the size of blocks of 2^log bytes, or 0 if it exceeds an int64.
func blocksToBytes(blocks uint64, log uint32) uint64 {
	if blocks > math.MaxInt64>>log {
		return 0
	}
	return blocks << log
}
