package disk

import (
	"encoding/binary"
	"io"
)

// Replay is a file system whose journal or log must be replayed: it was copied while mounted for writing, or its
// machine crashed. The kernel does not mount it read-only from a device that cannot be written.
type Replay struct {
	Kind      string     // ext3, ext4, xfs or btrfs
	Option    string     // the mount option that omits the replay
	Partition *Partition // nil if the file system is the whole image
}

// NeedReplay returns the file systems in an image of size bytes whose journal must be replayed: the image itself, or
// partitions of its GPT. It omits unknown, unreadable and malformed file systems.
func NeedReplay(r io.ReaderAt, size int64) []Replay {
	if found, ok := needsReplay(r); ok {
		return []Replay{found}
	}
	parts, err := readTable(r, size, 0)
	if err != nil {
		return nil
	}
	var all []Replay
	for _, p := range parts {
		if found, ok := needsReplay(io.NewSectionReader(r, p.Start, p.Size)); ok {
			found.Partition = &p
			all = append(all, found)
		}
	}
	return all
}

func needsReplay(r io.ReaderAt) (found Replay, ok bool) {
	for _, read := range []func(io.ReaderAt) (Replay, bool){extReplay, xfsReplay, btrfsReplay} {
		if found, ok = read(r); ok {
			return found, true
		}
	}
	return Replay{}, false
}

// extReplay: fs/ext4/ext4.h. The flag is set while the file system is mounted for writing.
func extReplay(r io.ReaderAt) (Replay, bool) {
	const incompatRecover = 0x4
	head := make([]byte, 2048)
	if !readAll(r, head, 0) {
		return Replay{}, false
	}
	kind, _ := parseExt(head)
	return Replay{Kind: kind, Option: "noload"}, kind != "" && le.Uint32(head[1024+0x60:])&incompatRecover != 0
}

// btrfsReplay: fs/btrfs/ctree.h. The log holds the files that were flushed since the last transaction.
func btrfsReplay(r io.ReaderAt) (Replay, bool) {
	const at, magic, logRoot = 64 << 10, 0x40, 0x60
	sb := make([]byte, 512)
	ok := readAll(r, sb, at) && string(sb[magic:magic+8]) == "_BHRfS_M" && le.Uint64(sb[logRoot:]) != 0
	return Replay{Kind: "btrfs", Option: "rescue=nologreplay"}, ok
}

// xfsReplay: fs/xfs/xfs_log_recover.c. A log is clean if its last record is an unmount record.
func xfsReplay(r io.ReaderAt) (Replay, bool) {
	log, ok := findXFSLog(r)
	if !ok {
		return Replay{}, false
	}
	clean, known := log.isClean()
	return Replay{Kind: "xfs", Option: "norecovery"}, known && !clean
}

// xfsLog is a ring of blocks of 512 bytes. Each pass over the ring is a cycle.
type xfsLog struct {
	r      io.ReaderAt
	start  int64 // bytes
	blocks int64
}

const xfsBlock = 512

// findXFSLog reads the position of the log from a superblock (fs/xfs/libxfs/xfs_format.h). ok is false for a log on
// another device.
func findXFSLog(r io.ReaderAt) (xfsLog, bool) {
	sb := make([]byte, 512)
	if !readAll(r, sb, 0) || string(sb[:4]) != "XFSB" {
		return xfsLog{}, false
	}
	block, groupBlocks := int64(be.Uint32(sb[4:])), int64(be.Uint32(sb[84:]))
	start, blocks, groupLog := be.Uint64(sb[48:]), int64(be.Uint32(sb[96:])), sb[124]
	const maxBlock, maxLog = 64 << 10, 2 << 30
	if block < xfsBlock || block > maxBlock || block%xfsBlock != 0 || groupLog > 31 || blocks == 0 || blocks > maxLog/block ||
		start == 0 || start>>groupLog > 1<<31 {
		return xfsLog{}, false
	}
	group, inGroup := int64(start>>groupLog), int64(start&(1<<groupLog-1))
	if group > (1<<62)/max(groupBlocks, 1)/block-1 {
		return xfsLog{}, false
	}
	return xfsLog{r, (group*groupBlocks + inGroup) * block, blocks * block / xfsBlock}, true
}

// isClean reports whether the log needs no replay. known is false if it cannot tell.
func (l xfsLog) isClean() (clean, known bool) {
	head, ok := l.findHead()
	if !ok || head < 0 {
		return head < 0, ok
	}
	const search = 1024 // a record has at most 256 KiB and its header
	p := make([]byte, xfsBlock)
	for back := int64(1); back <= min(search, l.blocks); back++ {
		at := (head - back + l.blocks) % l.blocks
		if !l.readBlock(p, at) {
			return false, false
		}
		if be.Uint32(p) == xfsRecord {
			return l.isUnmount(p, at, head)
		}
	}
	return false, false
}

const xfsRecord = 0xfeedbabe // begins a record

// findHead returns the block after the last record, or -1 for a log that was never written. Blocks before the head
// have been written once more often than the blocks after it.
func (l xfsLog) findHead() (at int64, ok bool) {
	first, ok := l.readCycle(0)
	if !ok || first == 0 {
		return -1, ok
	}
	last, ok := l.readCycle(l.blocks - 1)
	if !ok || last == first {
		return 0, ok
	}
	lo, hi := int64(0), l.blocks-1 // lo is in the cycle first, hi is not
	for hi-lo > 1 {
		middle := (lo + hi) / 2
		cycle, ok := l.readCycle(middle)
		if !ok {
			return 0, false
		}
		if cycle == first {
			lo = middle
		} else {
			hi = middle
		}
	}
	return hi, true
}

// readCycle returns the number of times that a block was written.
func (l xfsLog) readCycle(at int64) (cycle uint32, ok bool) {
	var p [8]byte
	if !l.readBlock(p[:], at) {
		return 0, false
	}
	if first := be.Uint32(p[:]); first != xfsRecord {
		return first, true
	}
	return be.Uint32(p[4:]), true
}

// isUnmount reports whether the record with its header in block at is an unmount record that ends at the log's head.
func (l xfsLog) isUnmount(header []byte, at, head int64) (clean, known bool) {
	const (
		length, operations, bufferSize = 12, 40, 320
		bufferOfHeader                 = 32 << 10 // bytes of data for each block of the header
		flags, unmount                 = 9, 0x20  // of an operation
	)
	headers := max((int64(be.Uint32(header[bufferSize:]))+bufferOfHeader-1)/bufferOfHeader, 1)
	blocks := (int64(be.Uint32(header[length:])) + xfsBlock - 1) / xfsBlock
	if (at+headers+blocks)%l.blocks != head {
		return false, true // the last record is incomplete
	}
	p := make([]byte, 12)
	if !l.readBlock(p, (at+headers)%l.blocks) {
		return false, false
	}
	return be.Uint32(header[operations:]) == 1 && p[flags]&unmount != 0, true
}

func (l xfsLog) readBlock(p []byte, at int64) bool { return readAll(l.r, p, l.start+at*xfsBlock) }

var be = binary.BigEndian

// readAll fills p and reports whether it could.
func readAll(r io.ReaderAt, p []byte, off int64) bool {
	n, _ := r.ReadAt(p, off)
	return n == len(p)
}
