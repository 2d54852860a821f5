package disk

import (
	"crypto/sha256"
	"fmt"
	"io"
	"strings"
)

// FilesystemIdentity is a text that tells the file system at the start of r from others: its kind and, of
// squashfs and erofs, which never change, a digest of the superblock; of ext, xfs and btrfs the UUID, since mounting
// them changes all else. "" is for what is not known or cannot be read. It is a hint and no proof: images may be
// made with a fixed UUID. It is not parsed, and may change with the version of this program.
func FilesystemIdentity(r io.ReaderAt) string {
	for _, s := range superblocks() {
		p := make([]byte, s.size)
		if _, err := r.ReadAt(p, s.at); err != nil && err != io.EOF { // EOF also comes with all of it
			continue
		}
		if strings.HasPrefix(string(p[s.magicAt:]), s.magic) {
			return s.identity(p)
		}
	}
	return ""
}

// superblock is where a kind of file system keeps what describes it. Offsets but at are its own.
type superblock struct {
	kind    string
	at      int64
	size    int
	magic   string
	magicAt int
	uuidAt  int // 0 if there is none, or all of the superblock counts
}

// superblocks are those of fs/squashfs/squashfs_fs.h, fs/ext4/ext4.h, fs/erofs/erofs_fs.h,
// fs/xfs/libxfs/xfs_format.h and fs/btrfs/ctree.h.
func superblocks() []superblock {
	return []superblock{
		{kind: "squashfs", size: 96, magic: "hsqs"},
		{kind: "xfs", size: 512, magic: "XFSB", uuidAt: 32},
		{kind: "ext", at: 1024, size: 1024, magic: "\x53\xef", magicAt: 0x38, uuidAt: 0x68},
		{kind: "erofs", at: 1024, size: 128, magic: "\xe2\xe1\xf5\xe0"},
		{kind: "btrfs", at: 64 << 10, size: 4096, magic: "_BHRfS_M", magicAt: 0x40, uuidAt: 0x20},
	}
}

func (s superblock) identity(p []byte) string {
	if u := p[s.uuidAt:]; s.uuidAt > 0 {
		return fmt.Sprintf("%s uuid=%x-%x-%x-%x-%x", s.kind, u[:4], u[4:6], u[6:8], u[8:10], u[10:16])
	}
	return fmt.Sprintf("%s superblock=%x", s.kind, sha256.Sum256(p))
}
