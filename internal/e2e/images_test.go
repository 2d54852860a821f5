package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"cairn/internal/need"
	"cairn/testimages"
)

// pair is two releases of one system.
type pair struct{ name, a, b string }

// smallExt4 and smallSquashfs make two releases of a small system, once for all tests.
var (
	smallExt4 = sync.OnceValues(func() (pair, error) {
		return newPair("ext4", func(path string, tree []testimages.Entry) error {
			return testimages.Ext4(path, tree, 40<<20)
		})
	})
	smallSquashfs = sync.OnceValues(func() (pair, error) { return newPair("squashfs", testimages.Squashfs) })
)

func newPair(kind string, write func(path string, tree []testimages.Entry) error) (pair, error) {
	p := pair{kind, filepath.Join(scratch, "a."+kind), filepath.Join(scratch, "b."+kind)}
	if err := write(p.a, testimages.Tree(1, 0)); err != nil {
		return pair{}, err
	}
	return p, write(p.b, testimages.Tree(1, 1))
}

// ext4 is the pair that is quick to make.
func ext4(t testing.TB) pair {
	t.Helper()
	p, err := smallExt4()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// pairs are the releases that everything is tried on.
func pairs(t testing.TB) []pair {
	t.Helper()
	all := []pair{ext4(t)}
	if testing.Short() {
		return all // the race detector makes compressing a squashfs slow
	}
	p, err := smallSquashfs()
	if err != nil {
		t.Fatal(err)
	}
	return append(append(all, p), realPairs(t)...)
}

// realPairs are the releases of a real system, in a long run.
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

// systems are the first releases of the pairs.
func systems(t testing.TB) []image {
	t.Helper()
	var all []image
	for _, p := range pairs(t) {
		all = append(all, image{p.name, p.a})
	}
	return all
}

// image is one image to be cut.
type image struct{ name, path string }

// edgeImages are small images with everything that is easily got wrong.
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

// sparseFile is a file with holes at its start, in its middle and at its end.
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
