package testimages

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/internal/test/need"
)

func digest(p []byte) string {
	sum := sha256.Sum256(p)
	return hex.EncodeToString(sum[:])
}

// The bytes are pinned, because golden files of other packages are made from them.
func TestPinned(t *testing.T) {
	var tree bytes.Buffer
	for _, e := range Tree(1, 2) {
		fmt.Fprintf(&tree, "%s %v %x\n", e.Path, e.Mode, sha256.Sum256(e.Data))
	}
	got := map[string]string{
		"Random":       digest(Random(1, 100_000)),
		"Sparse":       digest(Sparse(1, 4_000_000)),
		"SHA256Stream": digest(SHA256Stream(1000)),
		"Tree":         digest(tree.Bytes()),
	}
	want := map[string]string{
		"Random":       "1adcd7d844bad7e5b0ee996c6bd7264a804af54cfd77d81344f592336f94fdd8",
		"SHA256Stream": "e782424220e52a3de68a6d1847bab52bd282c99228d53cd2aa0f4f7f22bf244c",
		"Sparse":       "840ca4804a665bbf101543a7da25db4955d70166da11554eefbbd1a4a70bbc2c",
		"Tree":         "5cdb11bcb089f90afb62a1734f35681583abfadb41ffbe188d144cc50598bc8f",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("content (-want +got):\n%s", diff)
	}
}

func TestSHA256Stream(t *testing.T) {
	first, second := sha256.Sum256(make([]byte, 8)), sha256.Sum256([]byte{1, 0, 0, 0, 0, 0, 0, 0})
	want := append(first[:], second[:8]...)
	for n := range len(want) + 1 {
		if got := SHA256Stream(n); !bytes.Equal(got, want[:n]) {
			t.Errorf("SHA256Stream(%d) = %x, want %x", n, got, want[:n])
		}
	}
}

func TestSparseIsHalfZeros(t *testing.T) {
	p := Sparse(3, 16<<20)
	zeros := 0
	for block := 0; block < len(p); block += 4096 {
		if bytes.Equal(p[block:block+4096], make([]byte, 4096)) {
			zeros++
		}
	}
	if share := zeros * 4096 * 100 / len(p); share < 25 || share > 75 {
		t.Errorf("%d%% of the blocks are zero, want about half", share)
	}
}

func TestNextReleaseIsMostlyTheSame(t *testing.T) {
	old := map[string][]byte{}
	for _, e := range Tree(1, 0) {
		old[e.Path] = e.Data
	}
	var size, equal, changed, added int
	for _, e := range Tree(1, 1) {
		before, known := old[e.Path]
		delete(old, e.Path)
		size += len(e.Data)
		switch {
		case e.Mode.IsDir():
		case !known:
			added++
		case bytes.Equal(before, e.Data):
			equal += len(e.Data)
		default:
			changed++
		}
	}
	if size < 20<<20 || size > 40<<20 {
		t.Errorf("the tree has %d bytes, want 20 to 40 MiB", size)
	}
	if changed == 0 || added == 0 || len(old) == 0 || equal < size*8/10 {
		t.Errorf("files: %d changed, %d added, %d removed, %d of %d bytes in equal ones; want some each, most equal",
			changed, added, len(old), equal, size)
	}
}

// run runs a program that must succeed, and returns its output.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(need.Tool(t, name), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// checkTree compares the files that a tool has unpacked with the tree.
func checkTree(t *testing.T, dir string, tree []Entry) {
	t.Helper()
	for _, e := range tree {
		info, err := os.Stat(filepath.Join(dir, e.Path))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != e.Mode || !info.ModTime().Equal(epoch()) {
			t.Errorf("%s has mode %v and time %v, want %v and %v", e.Path, info.Mode(), info.ModTime(), e.Mode, epoch())
		}
		if !e.Mode.IsDir() && !bytes.Equal(read(t, filepath.Join(dir, e.Path)), e.Data) {
			t.Errorf("%s has other content", e.Path)
		}
	}
	count := -1 // the root is not an entry
	err := filepath.WalkDir(dir, func(string, fs.DirEntry, error) error { count++; return nil })
	if err != nil || count != len(tree) {
		t.Errorf("%d files and directories, %v, want %d", count, err, len(tree))
	}
}

func TestSquashfs(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", t.TempDir())
	tree := Tree(1, 0)[:60] // compression is slow under the race detector
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	for _, path := range []string{a, b} {
		if err := Squashfs(path, tree); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(read(t, a), read(t, b)) {
		t.Error("the same tree gave two different files")
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) != 0 {
		t.Errorf("left in the temporary directory: %v, %v", left, err)
	}
	out := filepath.Join(dir, "out")
	run(t, "unsquashfs", "-quiet", "-no-progress", "-dest", out, a)
	checkTree(t, out, tree)
}

func TestExt4(t *testing.T) {
	dir := t.TempDir()
	tree := Tree(1, 0)
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	for _, path := range []string{a, b} {
		if err := Ext4(path, tree, 48<<20); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(read(t, a), read(t, b)) {
		t.Error("the same tree gave two different files")
	}
	run(t, "e2fsck", "-fn", a)
	out := filepath.Join(dir, "out")
	if err := os.Mkdir(out, 0o700); err != nil {
		t.Fatal(err)
	}
	run(t, "debugfs", "-R", "rdump / "+out, a)
	os.Remove(filepath.Join(out, "lost+found"))
	checkTree(t, out, tree)
	if err := Ext4(a, nil, ext4Group+1); err == nil {
		t.Error("Ext4 of more than a block group succeeded")
	}
}

func TestNextReleaseSharesBlocks(t *testing.T) {
	dir := t.TempDir()
	blocks := map[string]bool{}
	shared, all := 0, 0
	for release := range 2 {
		path := filepath.Join(dir, "image")
		if err := Ext4(path, Tree(1, release), 48<<20); err != nil {
			t.Fatal(err)
		}
		p := read(t, path)
		for i := 0; i < len(p); i += ext4Block {
			block := string(p[i : i+ext4Block])
			if release == 0 {
				blocks[block] = true
				continue
			}
			all++
			if blocks[block] {
				shared++
			}
		}
	}
	if shared*100 < all*85 || shared == all {
		t.Errorf("%d of %d blocks of the next release are known, want most, not all", shared, all)
	}
}

func TestGPTDisk(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		dir := t.TempDir()
		image, path := filepath.Join(dir, "image"), filepath.Join(dir, "disk")
		content := Random(1, 1<<20+5)
		if err := os.WriteFile(image, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := GPTDisk(path, sector, Slots(2<<20, image, "")...); err != nil {
			t.Fatal(err)
		}
		want := make([]byte, 7<<20)
		copy(want[2<<20:], content)
		got := read(t, path)
		if !bytes.Equal(got[1<<20:6<<20], want[1<<20:6<<20]) || len(got) != len(want) {
			t.Errorf("sectors of %d bytes: the partitions hold other bytes than the images", sector)
		}
		if sector == 512 { // sfdisk assumes it for files
			checkGPT(t, path)
		}
		if err := GPTDisk(path, sector, Part{"small", 1 << 20, image}); err == nil {
			t.Error("an image larger than its partition was accepted")
		}
	}
}

func checkGPT(t *testing.T, path string) {
	t.Helper()
	if out := run(t, "sgdisk", "--verify", path); !strings.Contains(out, "No problems found") {
		t.Errorf("sgdisk --verify:\n%s", out)
	}
	run(t, "sfdisk", "--verify", path)
	dump := run(t, "sfdisk", "--dump", path)
	for _, words := range []string{
		`1 : start=        2048, size=        2048, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B`,
		`2 : start=        4096, size=        4096, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4`,
		`3 : start=        8192, size=        4096, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4`,
		`name="esp"`, `name="root-a"`, `name="root-b"`,
	} {
		if !strings.Contains(dump, words) {
			t.Errorf("sfdisk --dump lacks %q:\n%s", words, dump)
		}
	}
}
