package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"cairn/internal/test/need"
	"cairn/testimages"
)

// pair holds two releases of a system.
type pair struct{ name, a, b string }

// small returns two releases without a file system that are quick to make. The second begins with another byte,
// and has inserted data and zeros.
func small(t testing.TB) pair {
	t.Helper()
	dir := t.TempDir()
	a := testimages.Random(2, 6*mib)
	b := slices.Concat(a[:mib], testimages.Random(3, 24*4096), a[mib:3*mib], make([]byte, mib), a[3*mib:5*mib+12_345],
		testimages.Random(5, 74*4096), a[5*mib+12_345:])
	b[0]++
	return pair{"small", writeFile(t, dir, "a", a), writeFile(t, dir, "b", b)}
}

// ext4 and squashfs make two releases of a small system once for all tests.
var (
	ext4 = sync.OnceValues(func() (pair, error) {
		return newPair("ext4", func(path string, tree []testimages.Entry) error {
			return testimages.Ext4(path, tree, 40*mib)
		})
	})
	squashfs = sync.OnceValues(func() (pair, error) { return newPair("squashfs", testimages.Squashfs) })
)

func newPair(kind string, write func(path string, tree []testimages.Entry) error) (pair, error) {
	p := pair{kind, filepath.Join(scratch, "a."+kind), filepath.Join(scratch, "b."+kind)}
	if err := write(p.a, testimages.Tree(1, 0)); err != nil {
		return pair{}, err
	}
	return p, write(p.b, testimages.Tree(1, 1))
}

// pairs returns the releases for most tests.
func pairs(t testing.TB) []pair {
	t.Helper()
	if testing.Short() {
		return []pair{small(t)}
	}
	return append(filesystems(t), realPairs(t)...)
}

// filesystems returns the pairs of the small system.
func filesystems(t testing.TB) []pair {
	t.Helper()
	var all []pair
	for _, make := range []func() (pair, error){ext4, squashfs} {
		p, err := make()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

// realPairs returns the releases of a real system, if CAIRN_LONG is set.
func realPairs(t testing.TB) []pair {
	t.Helper()
	dir := os.Getenv("CAIRN_IMAGES")
	if os.Getenv("CAIRN_LONG") != "1" || dir == "" {
		return nil
	}
	var all []pair
	for _, kind := range []string{"squashfs", "ext4"} {
		p := pair{"debian-" + kind, filepath.Join(dir, "a."+kind), filepath.Join(dir, "b."+kind)}
		if _, err := os.Stat(p.b); err != nil {
			need.Missing(t, "CAIRN_IMAGES holds no "+kind)
		}
		all = append(all, p)
	}
	return all
}

// systems returns the first releases of the pairs.
func systems(t testing.TB) []image {
	t.Helper()
	var all []image
	for _, p := range pairs(t) {
		all = append(all, image{p.name, p.a})
	}
	return all
}

// image is an image to be cut.
type image struct{ name, path string }

// edgeImages returns small images with edge cases.
func edgeImages(t testing.TB) []image {
	t.Helper()
	dir := t.TempDir()
	noise := testimages.Random(1, 3<<20+12_345)
	return []image{
		{"random", writeFile(t, dir, "random", noise)},
		{"all zeros", writeFile(t, dir, "zeros", make([]byte, 9<<20+5))},
		{"ending in zeros", writeFile(t, dir, "tail", append(noise[:1<<20+77:1<<20+77], make([]byte, 9<<20)...))},
		{"starting with zeros", writeFile(t, dir, "head", append(make([]byte, 5<<20+1), noise[:1<<20]...))},
		{"repeating", writeFile(t, dir, "repeats", bytes.Repeat(noise[:700_001], 4))},
		{"one byte", writeFile(t, dir, "one", []byte{7})},
		{"empty", writeFile(t, dir, "empty", nil)},
		{"sparse", sparseFile(t, dir, noise)},
	}
}

// sparseFile creates a file with holes at its start, in its middle and at its end.
func sparseFile(t testing.TB, dir string, data []byte) string {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, off := range []int64{3 << 20, 3<<20 + 900_001, 9 << 20} {
		if _, err := f.WriteAt(data[:300_000], off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(16<<20 + 3); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}
