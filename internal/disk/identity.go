package disk

import (
	"crypto/sha256"
	"fmt"
	"io"
	"strings"
)

// FilesystemIdentity returns a text that identifies the file system at the start of r. It has the kind and, for
// squashfs and erofs, which never change, a digest of the superblock. For ext, xfs and btrfs it has the UUID,
// because mounting changes their superblocks. It is "" for an unknown or unreadable file system.
//
// The text is a hint and not a proof: images may share a fixed UUID. It is not parsed, and its form may change
// between versions of this program.
func FilesystemIdentity(r io.ReaderAt) string {
	for _, s := range knownSuperblocks() {
		p := make([]byte, s.size)
		if _, err := r.ReadAt(p, s.at); err != nil && err != io.EOF { // io.EOF may come with a full read
			continue
		}
		if strings.HasPrefix(string(p[s.magicAt:]), s.magic) {
			return s.identify(p)
		}
	}
	return ""
}

// superblock describes where a kind of file system has its superblock. magicAt and uuidAt are offsets in it.
type superblock struct {
	kind    string
	at      int64
	size    int
	magic   string
	magicAt int
	uuidAt  int // 0 if the whole superblock is the identity
}

// knownSuperblocks returns those of fs/squashfs/squashfs_fs.h, fs/ext4/ext4.h, fs/erofs/erofs_fs.h,
// fs/xfs/libxfs/xfs_format.h and fs/btrfs/ctree.h.
func knownSuperblocks() []superblock {
	return []superblock{
		{kind: "squashfs", size: 96, magic: "hsqs"},
		{kind: "xfs", size: 512, magic: "XFSB", uuidAt: 32},
		{kind: "ext", at: 1024, size: 1024, magic: "\x53\xef", magicAt: 0x38, uuidAt: 0x68},
		{kind: "erofs", at: 1024, size: 128, magic: "\xe2\xe1\xf5\xe0"},
		{kind: "btrfs", at: 64 << 10, size: 4096, magic: "_BHRfS_M", magicAt: 0x40, uuidAt: 0x20},
	}
}

func (s superblock) identify(p []byte) string {
	if u := p[s.uuidAt:]; s.uuidAt > 0 {
		return fmt.Sprintf("%s uuid=%x-%x-%x-%x-%x", s.kind, u[:4], u[4:6], u[6:8], u[8:10], u[10:16])
	}
	return fmt.Sprintf("%s superblock=%x", s.kind, sha256.Sum256(p))
}
