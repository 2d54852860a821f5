package disk

import (
	"bytes"
	"testing"

	"cairn/testimages"
)

func TestFilesystemSize(t *testing.T) {
	const partition = 20 << 20
	tests := []struct {
		name string
		kind string
		args []string
		size int64 // 0 means the size of the file that the tool makes
	}{
		{"mksquashfs", "squashfs", []string{"TREE", "IMAGE", "-quiet", "-no-progress"}, 0},
		{"mkfs.erofs", "erofs", []string{"IMAGE", "TREE"}, 0},
		{"mkfs.ext4", "ext4", []string{"-q", "-d", "TREE", "IMAGE", "9M"}, 9 << 20},
		{"mkfs.ext4", "ext4", []string{"-q", "-b", "1024", "-O", "^64bit", "IMAGE", "9M"}, 9 << 20},
		{"mkfs.ext3", "ext3", []string{"-q", "IMAGE", "9M"}, 9 << 20},
		{"mkfs.ext2", "ext2", []string{"-q", "IMAGE", "9M"}, 9 << 20},
	}
	for _, test := range tests {
		image := filesystem(t, 0, test.name, test.args...)
		p := read(t, image)
		if test.size == 0 {
			test.size = int64(len(p))
		}
		slot := append(p, testimages.Random(2, partition-len(p))...) // old bytes follow in the slot
		kind, size, ok := FilesystemSize(bytes.NewReader(slot))
		if kind != test.kind || size != test.size || !ok {
			t.Errorf("%s: FilesystemSize = %s, %d, %v, want %s, %d", test.name, kind, size, ok, test.kind, test.size)
		}
	}
}

func TestFilesystemSizeRoundsSquashfsUp(t *testing.T) {
	head := make([]byte, 96)
	copy(head, "hsqs")
	head[0x1c] = 4
	for used, want := range map[uint64]int64{1: 4096, 4096: 4096, 4097: 8192, 0: 0, 1<<63 - 1: 0, 1<<64 - 1: 0} {
		put(head[0x28:], used)
		_, size, ok := FilesystemSize(bytes.NewReader(head))
		if size != want || ok != (want != 0) {
			t.Errorf("%d bytes used: size %d, %v, want %d", used, size, ok, want)
		}
	}
}

func TestFilesystemSizeOfNothingKnown(t *testing.T) {
	for _, n := range []int{0, 10, 1030, 5000} {
		if kind, size, ok := FilesystemSize(bytes.NewReader(testimages.Random(1, n))); ok {
			t.Errorf("%d random bytes are %s of %d bytes", n, kind, size)
		}
	}
}

func FuzzFilesystemSize(f *testing.F) {
	f.Add([]byte("hsqs"))
	for _, magic := range []struct {
		at    int
		bytes string
	}{{1024 + 0x38, "\x53\xef"}, {1024, "\xe2\xe1\xf5\xe0"}} {
		head := make([]byte, 2048)
		copy(head[magic.at:], magic.bytes)
		f.Add(head)
	}
	f.Fuzz(func(t *testing.T, head []byte) {
		kind, size, ok := FilesystemSize(bytes.NewReader(head))
		if ok != (size > 0) || ok != (kind != "") {
			t.Errorf("FilesystemSize = %q, %d, %v", kind, size, ok)
		}
	})
}
