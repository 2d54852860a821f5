package disk

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"cairn/internal/test/looptest"
	"cairn/internal/test/need"
	"cairn/testimages"
)

const anyUUID = "5f1d2a3b-0001-4c4d-8e8f-a0b1c2d3e4f5"

// filesystem makes a file system with a tool. IMAGE and TREE in the arguments stand for paths.
func filesystem(t *testing.T, size int64, tool string, args ...string) (image string) {
	t.Helper()
	tree := t.TempDir()
	if err := os.WriteFile(filepath.Join(tree, "file"), testimages.Random(1, 300_000), 0o600); err != nil {
		t.Fatal(err)
	}
	image = filepath.Join(t.TempDir(), "image")
	if size > 0 {
		image = looptest.File(t, size)
	}
	command := strings.NewReplacer("IMAGE", image, "TREE", tree).Replace(strings.Join(args, "\n"))
	looptest.Run(t, need.Tool(t, tool), strings.Split(command, "\n")...)
	return image
}

func identityOf(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return FilesystemIdentity(f)
}

func TestFilesystemIdentity(t *testing.T) {
	tests := []struct {
		prefix string
		size   int64
		tool   string
		args   []string
	}{
		{"squashfs superblock=", 0, "mksquashfs", []string{"TREE", "IMAGE", "-quiet", "-no-progress"}},
		{"erofs superblock=", 0, "mkfs.erofs", []string{"-U", anyUUID, "IMAGE", "TREE"}},
		{"ext uuid=" + anyUUID, 9 * mib, "mkfs.ext4", []string{"-q", "-U", anyUUID, "-d", "TREE", "IMAGE"}},
		{"xfs uuid=" + anyUUID, 320 * mib, "mkfs.xfs", []string{"-q", "-m", "uuid=" + anyUUID, "IMAGE"}},
		{"btrfs uuid=" + anyUUID, 128 * mib, "mkfs.btrfs", []string{"-q", "-U", anyUUID, "IMAGE"}},
	}
	for _, test := range tests {
		image := filesystem(t, test.size, test.tool, test.args...)
		first := identityOf(t, image)
		if !strings.HasPrefix(first, test.prefix) || first != identityOf(t, image) {
			t.Errorf("%s: %q, want %s…, and the same again", test.tool, first, test.prefix)
		}
	}
}

// Mounting a file system and writing to it changes its superblock, but not its identity.
func TestFilesystemIdentityStays(t *testing.T) {
	need.Root(t)
	for kind, size := range map[string]int64{"ext4": 9 * mib, "xfs": 320 * mib, "btrfs": 128 * mib} {
		image := filesystem(t, size, "mkfs."+kind, "-q", "IMAGE")
		before := identityOf(t, image)
		point := t.TempDir()
		looptest.Run(t, need.Tool(t, "mount"), "-o", "loop", image, point)
		err := os.WriteFile(filepath.Join(point, "file"), testimages.Random(1, 100_000), 0o600)
		looptest.Run(t, need.Tool(t, "umount"), point)
		if err != nil {
			t.Fatal(err)
		}
		if after := identityOf(t, image); after != before {
			t.Errorf("%s was %q, and is %q", kind, before, after)
		}
		if other := identityOf(t, filesystem(t, size, "mkfs."+kind, "-q", "IMAGE")); other == before {
			t.Errorf("%s: another file system is %q too", kind, other)
		}
	}
}

func FuzzFilesystemIdentity(f *testing.F) {
	for _, s := range knownSuperblocks() {
		p := make([]byte, s.at+int64(s.size))
		copy(p[s.at+int64(s.magicAt):], s.magic)
		f.Add(p)
		f.Add(p[:s.at+int64(s.magicAt+len(s.magic))])
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		text := FilesystemIdentity(bytes.NewReader(p))
		if text != "" && !regexp.MustCompile(`^[a-z]+ (uuid=[0-9a-f-]{36}|superblock=[0-9a-f]{64})$`).MatchString(text) {
			t.Errorf("identity %q", text)
		}
		if len(p) < 4 && text != "" {
			t.Errorf("%d bytes are %s", len(p), text)
		}
	})
}
