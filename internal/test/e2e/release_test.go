package e2e

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/blob"
	"cairn/internal/test/looptest"
	"cairn/testimages"
)

// release is a directory with the two releases of a pair, published: a.caibx, b.caibx and default.castr.
type release struct {
	pair
	dir string
}

func publish(t testing.TB, p pair) release {
	t.Helper()
	r := release{p, t.TempDir()}
	cairn(t, "make", r.index("a"), p.a)
	cairn(t, "make", r.index("b"), p.b)
	return r
}

func (r release) index(name string) string { return filepath.Join(r.dir, name+".caibx") }

// stored returns the size of a chunk in the store in bytes.
func (r release) stored(t testing.TB, c blob.Chunk) int64 {
	t.Helper()
	return fileSize(t, chunkFile(filepath.Join(r.dir, "default.castr"), c.Digest))
}

// needed returns the download for release b with a seed and its index: each chunk once in its stored size,
// except zeros. Data that the seed does not hold where its index says counts as absent.
func (r release) needed(t testing.TB, index *blob.Index, seed io.ReaderAt) traffic {
	t.Helper()
	here := map[blob.Digest]bool{}
	for _, c := range index.All() {
		if before, known := here[c.Digest]; before || !known {
			here[c.Digest] = holds(index, c, seed)
		}
	}
	var sum traffic
	x := readIndex(t, r.index("b"))
	for i, c := range x.All() {
		if x.IsZero(i) || here[c.Digest] {
			continue
		}
		here[c.Digest] = true
		sum.chunks++
		sum.bytes += r.stored(t, c)
	}
	return sum
}

func holds(x *blob.Index, c blob.Chunk, seed io.ReaderAt) bool {
	p := make([]byte, c.Size)
	n, _ := seed.ReadAt(p, c.Offset)
	return n == len(p) && x.Algorithm().Sum(p) == c.Digest
}

// difference returns the download for release b with release a.
func (r release) difference(t testing.TB) traffic {
	t.Helper()
	return r.needed(t, readIndex(t, r.index("a")), open(t, r.a))
}

// twoChunks returns the largest download of two chunks of release b.
func (r release) twoChunks(t testing.TB) traffic {
	t.Helper()
	var sizes []int64
	for _, c := range readIndex(t, r.index("b")).All() {
		sizes = append(sizes, r.stored(t, c))
	}
	slices.Sort(sizes)
	two := traffic{chunks: 2}
	for _, n := range sizes[max(0, len(sizes)-2):] {
		two.bytes += n
	}
	return two
}

func (t traffic) plus(u traffic) traffic { return traffic{t.chunks + u.chunks, t.bytes + u.bytes} }

func open(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// slots is a disk with two slots. The first holds release a, the second other data.
type slots struct {
	disk string // the disk image
	size int64  // size of a slot
	a, b string // the slots as arguments of cairn
}

const firstSlot = 2 * mib // after the table and an empty partition

// newSlots creates the disk image, and attaches a loop device to it if device is set.
func newSlots(t testing.TB, r release, device bool) slots {
	t.Helper()
	dir := t.TempDir()
	s := slots{disk: filepath.Join(dir, "disk.img")}
	s.size = (max(fileSize(t, r.a), fileSize(t, r.b))/mib + 2) * mib
	other := writeFile(t, dir, "other", testimages.Random(9, 3*mib))
	if err := testimages.GPTDisk(s.disk, 512, testimages.Slots(s.size, r.a, other)...); err != nil {
		t.Fatal(err)
	}
	node := s.disk
	if device {
		node = looptest.Attach(t, s.disk, 512)
	}
	s.a, s.b = node+"#root-a", node+"#root-b"
	return s
}

// seed returns the first slot's bytes.
func (s slots) seed(t testing.TB) io.ReaderAt {
	t.Helper()
	return io.NewSectionReader(open(t, s.disk), firstSlot, s.size)
}

// parts are the sums of the disk's bytes before the second slot, in it up to the image's end, and after.
type parts struct{ before, image, behind [32]byte }

func (s slots) parts(t testing.TB, image string) parts {
	t.Helper()
	at, n, total := firstSlot+s.size, fileSize(t, image), fileSize(t, s.disk)
	return parts{sum(t, s.disk, 0, at), sum(t, s.disk, at, n), sum(t, s.disk, at+n, total-at-n)}
}

// headSize is the size of the part of a slot that is made invalid before any other part changes.
const headSize = 128 << 10

// slotB returns the content of the second slot.
func (s slots) slotB(t testing.TB) []byte {
	t.Helper()
	p := make([]byte, s.size)
	if _, err := open(t, s.disk).ReadAt(p, firstSlot+s.size); err != nil {
		t.Fatal(err)
	}
	return p
}

// wantUnfinished checks that the second slot, which held before, is unchanged or has no head.
func (s slots) wantUnfinished(t testing.TB, before []byte) {
	t.Helper()
	after := s.slotB(t)
	invalid := headSize
	if bytes.Equal(after[headSize:], before[headSize:]) {
		invalid = 4096 // a kill may stop the writing of zeros after any page
	}
	if !bytes.Equal(after, before) && bytes.Trim(after[:invalid], "\x00") != nil {
		t.Error("the slot has changed, and its head is not invalid")
	}
}

// change writes to the first slot in a few places, as a running system might.
func (s slots) change(t testing.TB) {
	t.Helper()
	path, base := s.disk, int64(firstSlot)
	if node, isDevice := strings.CutSuffix(s.a, "#root-a"); isDevice && node != s.disk {
		path, base = node+"p2", 0
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for n := range int64(9) {
		if _, err := f.WriteAt(testimages.Random(uint64(n), 4096), base+s.size/10*(n+1)/4096*4096); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}
