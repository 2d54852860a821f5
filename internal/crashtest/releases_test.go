package crashtest

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"cairn/blob"
	"cairn/testimages"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
	// head is where file systems are recognised: what overlaps it is written last.
	head = 128 * kib
)

// releases are images and their indexes, NAME and NAME.caibx, beside the store of all their chunks.
type releases struct{ dir string }

func (r releases) image(name string) string { return filepath.Join(r.dir, name) }
func (r releases) index(name string) string { return filepath.Join(r.dir, name+".caibx") }

// ext4 and squashfs are the releases a, b and c of a small system, made once for all tests.
var (
	ext4 = sync.OnceValues(func() (releases, error) {
		return newReleases("ext4", 0, func(path string, tree []testimages.Entry) error {
			return testimages.Ext4(path, tree, 40*mib)
		})
	})
	squashfs = sync.OnceValues(func() (releases, error) { return newReleases("squashfs", 0, testimages.Squashfs) })
)

// newReleases makes three releases of which each has the first files of the small system, or all for 0.
func newReleases(kind string, files int, write func(string, []testimages.Entry) error) (releases, error) {
	r := releases{filepath.Join(scratch, kind)}
	if err := os.Mkdir(r.dir, 0o700); err != nil {
		return r, err
	}
	for n, name := range []string{"a", "b", "c"} {
		tree := testimages.Tree(1, n)
		if files > 0 {
			tree = tree[:min(files, len(tree))]
		}
		if err := write(r.image(name), tree); err != nil {
			return r, err
		}
	}
	return r, nil
}

// published are releases whose indexes and chunks were made.
func published(t testing.TB, made func() (releases, error)) releases {
	t.Helper()
	r, err := made()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b", "c"} {
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

// single is one release, x, with that content.
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
	data, err := os.ReadFile(r.index(name))
	if err != nil {
		t.Fatal(err)
	}
	x, err := blob.Decode(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// size is the length of a release's image.
func (r releases) size(t testing.TB, name string) int64 {
	t.Helper()
	info, err := os.Stat(r.image(name))
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// stored is what a chunk takes in the store.
func (r releases) stored(t testing.TB, d blob.Digest) int64 {
	t.Helper()
	name := d.String()
	info, err := os.Stat(filepath.Join(r.dir, "default.castr", name[:4], name+".cacnk"))
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// difference is what the distinct chunks of release b that release a lacks take in the store; and what its two
// largest chunks take.
func (r releases) difference(t testing.TB, a, b string) (sum, two int64) {
	t.Helper()
	here := map[blob.Digest]bool{}
	for _, c := range r.read(t, a).All() {
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

// writable is how many bytes an update to x may write onto what old holds: the chunks that are not in place,
// each extent in whole pages, and twice the head. An extent lies within one of the runs of up to 4 MiB that the
// image is put together in.
func writable(t testing.TB, x *blob.Index, old io.ReaderAt) int64 {
	t.Helper()
	heads := min(x.Find(head-1)+1, x.Len())
	n := 2 * pages(0, x.At(heads-1).End())
	for lo := heads; lo < x.Len(); {
		hi := x.Span(lo, 4*mib)
		n += extents(x, lo, hi, old)
		lo = hi
	}
	return n
}

// extents is the size, in whole pages, of the runs of chunks from lo to hi that old does not hold in place.
func extents(x *blob.Index, lo, hi int, old io.ReaderAt) (n int64) {
	from, to := x.At(lo).Offset, x.At(lo).Offset
	for i := lo; i < hi; i++ {
		c := x.At(i)
		p := make([]byte, c.Size)
		k, _ := old.ReadAt(p, c.Offset)
		if k == len(p) && x.Algorithm().Sum(p) == c.Digest {
			n += pages(from, to)
			from = c.End()
		}
		to = c.End()
	}
	return n + pages(from, to)
}

// pages is the size of the pages that the bytes from lo to hi touch.
func pages(lo, hi int64) int64 {
	const page = 4 * kib
	if lo == hi {
		return 0
	}
	return (hi+page-1)/page*page - lo/page*page
}
