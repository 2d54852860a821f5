package crashtest

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"cairn/blob"
	"cairn/internal/test/need"
	"cairn/testimages"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
	// head is the part of an image in which file systems are recognised. Chunks that overlap it are written last.
	head = 128 * kib
)

// releases is a directory with images and their indexes, NAME and NAME.caibx, and the store of all their chunks.
type releases struct{ dir string }

func (r releases) image(name string) string { return filepath.Join(r.dir, name) }
func (r releases) index(name string) string { return filepath.Join(r.dir, name+".caibx") }

// ext4 and squashfs make the releases a, b and c of a small system once for all tests.
var (
	ext4 = sync.OnceValues(func() (releases, error) {
		return newReleases("ext4", func(path string, tree []testimages.Entry) error {
			return testimages.Ext4(path, tree, 40*mib)
		})
	})
	squashfs = sync.OnceValues(func() (releases, error) { return newReleases("squashfs", makeSquashfs) })
)

// makeSquashfs writes a tree with the real tool, which is faster than Go under the race detector.
func makeSquashfs(path string, tree []testimages.Entry) error {
	return pack(tree, func(dir string) *exec.Cmd {
		return exec.Command("mksquashfs", dir, path, "-comp", "zstd", "-all-root", "-mkfs-time", "1750000000",
			"-all-time", "1750000000", "-noappend", "-quiet", "-no-progress")
	})
}

func makeErofs(path string, tree []testimages.Entry) error {
	return pack(tree, func(dir string) *exec.Cmd {
		return exec.Command("mkfs.erofs", "-T1750000000", "-U5a5a5a5a-0001-4000-8000-000000000001", path, dir)
	})
}

// pack runs a tool that makes a file system of a directory with the tree.
func pack(tree []testimages.Entry, tool func(dir string) *exec.Cmd) error {
	dir, err := os.MkdirTemp(scratch, "tree-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := unpack(dir, tree); err != nil {
		return err
	}
	cmd := tool(dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	return nil
}

// unpack writes a tree into a directory.
func unpack(dir string, tree []testimages.Entry) error {
	for _, e := range tree {
		path := filepath.Join(dir, e.Path)
		var err error
		if e.Mode.IsDir() {
			err = os.Mkdir(path, e.Mode.Perm())
		} else {
			err = os.WriteFile(path, e.Data, e.Mode.Perm())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func releaseNames() []string { return []string{"a", "b", "c"} }

// newReleases makes three releases of a small system.
func newReleases(kind string, write func(string, []testimages.Entry) error) (releases, error) {
	r := releases{filepath.Join(scratch, kind)}
	return r, r.make(1000, write)
}

// make makes three releases with up to files files of the small system.
func (r releases) make(files int, write func(string, []testimages.Entry) error) error {
	if err := os.Mkdir(r.dir, 0o755); err != nil {
		return err
	}
	for n, name := range releaseNames() {
		tree := testimages.Tree(1, n)
		if err := write(r.image(name), tree[:min(files, len(tree)):len(tree)]); err != nil {
			return err
		}
	}
	return nil
}

// published makes releases with their indexes and chunks.
func published(t testing.TB, made func() (releases, error)) releases {
	t.Helper()
	need.Tool(t, "mksquashfs")
	r, err := made()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range releaseNames() {
		if _, err := os.Stat(r.index(name)); err != nil {
			r.publish(t, name)
		}
	}
	return r
}

func (r releases) publish(t testing.TB, name string) {
	t.Helper()
	must(t, "cairn", "make", "--compression-level=1", r.index(name), r.image(name))
}

// single returns one release, x, with the content.
func single(t testing.TB, content []byte) releases {
	t.Helper()
	r := releases{t.TempDir()}
	if err := os.WriteFile(r.image("x"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	r.publish(t, "x")
	return r
}

func (r releases) read(t testing.TB, name string) *blob.Index {
	t.Helper()
	return readIndex(t, r.index(name))
}

func readIndex(t testing.TB, path string) *blob.Index {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	x, err := blob.Decode(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// size returns the size of a release's image in bytes.
func (r releases) size(t testing.TB, name string) int64 {
	t.Helper()
	info, err := os.Stat(r.image(name))
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// stored returns the size of a chunk in the store.
func (r releases) stored(t testing.TB, d blob.Digest) int64 {
	t.Helper()
	name := d.String()
	info, err := os.Stat(filepath.Join(r.dir, "default.castr", name[:4], name+".cacnk"))
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// difference returns the stored size of the distinct chunks of release b that the seed lacks, and of its two largest
// chunks.
func (r releases) difference(t testing.TB, seed *blob.Index, b string) (sum, two int64) {
	t.Helper()
	here := map[blob.Digest]bool{}
	for _, c := range seed.All() {
		here[c.Digest] = true
	}
	var sizes []int64
	x := r.read(t, b)
	for i, c := range x.All() {
		if x.IsZero(i) {
			continue
		}
		n := r.stored(t, c.Digest)
		sizes = append(sizes, n)
		if !here[c.Digest] {
			sum += n
		}
		here[c.Digest] = true
	}
	slices.Sort(sizes)
	for _, n := range sizes[max(0, len(sizes)-2):] {
		two += n
	}
	return sum, two
}

// writable returns the number of bytes that an update to x may write onto the content of old: the chunks that
// are not in place, each extent in whole pages, and the head twice. An extent holds data or zeros, and lies
// within one of the runs of up to 2 MiB in which the image is assembled. A repeat of an earlier chunk is an
// extent of its own.
func writable(t testing.TB, x *blob.Index, old io.ReaderAt) int64 {
	t.Helper()
	heads := min(x.Find(head-1)+1, x.Len())
	n, until := 2*pages(0, x.At(heads-1).End()), heads
	seen := map[blob.Digest]bool{}
	var from, to int64 // the current extent
	var zeros bool
	for i := heads; i < x.Len(); i++ {
		c := x.At(i)
		starts := i == until || x.IsZero(i) != zeros || to != c.Offset || seen[c.Digest] && !zeros
		if i == until {
			until = x.Span(i, 2*mib)
		}
		seen[c.Digest] = true
		if isInPlace(x, c, old) {
			continue
		}
		if starts {
			n += pages(from, to)
			from = c.Offset
		}
		to, zeros = c.End(), x.IsZero(i)
	}
	return n + pages(from, to)
}

func isInPlace(x *blob.Index, c blob.Chunk, old io.ReaderAt) bool {
	p := make([]byte, c.Size)
	n, _ := old.ReadAt(p, c.Offset)
	return n == len(p) && x.Algorithm().Sum(p) == c.Digest
}

// pages returns the size of the pages that the bytes from lo to hi touch.
func pages(lo, hi int64) int64 {
	const page = 4 * kib
	if lo == hi {
		return 0
	}
	return (hi+page-1)/page*page - lo/page*page
}
