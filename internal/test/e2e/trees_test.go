package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/internal/test/need"
	"cairn/testimages"
)

// tree is a directory tree as an archive and in a store, made by casync or desync.
type tree struct{ dir, index, archive, store string }

func newTree(t testing.TB, tool string, with ...string) tree {
	t.Helper()
	need.Tool(t, tool)
	dir := t.TempDir()
	files := mkdir(t, filepath.Join(dir, "files"))
	writeFile(t, files, "big", testimages.Random(3, 300_000))
	w := tree{dir, filepath.Join(dir, "x.caidx"), filepath.Join(dir, "x.catar"), mkdir(t, filepath.Join(dir, "x.castr"))}
	if tool == "desync" {
		must(t, "desync", "tar", "-i", "-s", w.store, w.index, files)
		must(t, "desync", "tar", w.archive, files)
		return w
	}
	must(t, "casync", append(with, "make", "--store="+w.store, w.index, files)...)
	must(t, "casync", "make", w.archive, files)
	return w
}

// renamed returns the tree's index under the name of an image's index.
func (w tree) renamed(t testing.TB) string {
	t.Helper()
	return writeFile(t, w.dir, "misnamed.caibx", readFile(t, w.index))
}

// TestTreesAreNotImages: the index of a directory tree is not assembled onto a partition, whatever its name.
func TestTreesAreNotImages(t *testing.T) {
	t.Parallel()
	for name, with := range map[string][]string{"casync": {"casync"}, "without flags": {"casync", "--without=all"}, "desync": {"desync"}} {
		t.Run(name, func(t *testing.T) {
			w := newTree(t, with[0], with[1:]...)
			disk, out := filepath.Join(t.TempDir(), "disk.img"), filepath.Join(t.TempDir(), "out")
			if err := testimages.GPTDisk(disk, 512, testimages.Part{Name: "root", Size: 2 * mib}); err != nil {
				t.Fatal(err)
			}
			before := sum(t, disk, 0, fileSize(t, disk))
			for _, index := range []string{w.index, w.renamed(t), w.archive} {
				for _, target := range []string{disk + "#root", out} {
					fails(t, damaged, "directory tree", "assemble", index, target, "-s", w.store)
					if name != "without flags" || index == w.index { // a plan downloads nothing
						fails(t, damaged, "directory tree", "plan", index, target, "-s", w.store)
					}
				}
			}
			if sum(t, disk, 0, fileSize(t, disk)) != before {
				t.Error("the partition was written to")
			}
			wantOnly(t, filepath.Dir(out))
		})
	}
}

// TestTreesAreNamed: commands that only read report the kind of an index, and continue.
func TestTreesAreNamed(t *testing.T) {
	t.Parallel()
	w := newTree(t, "casync")
	cut := writeFile(t, w.dir, "archive", readFile(t, w.archive))
	for _, args := range [][]string{
		{"info", w.index}, {"verify", w.index, "-s", w.store}, {"verify", w.index, cut}, {"cat", w.index, "-s", w.store},
		{"diff", w.index, w.index}, {"store", "stat", w.store, w.index}, {"store", "verify", w.store, w.index, "--state", ""},
		{"store", "copy", w.store, filepath.Join(w.dir, "copy.castr"), w.index},
	} {
		for _, index := range []string{w.index, w.renamed(t)} {
			args := slices.Clone(args)
			for i := range args {
				args[i] = strings.ReplaceAll(args[i], w.index, index)
			}
			got := run(t, "cairn", args...)
			if got.status != 0 || !strings.Contains(got.stdout+got.stderr, "directory tree") {
				t.Errorf("cairn %q: exit status %d\n%s", args, got.status, got.stderr)
			}
		}
	}
	fails(t, damaged, ".catar archive", "info", w.archive)
	plain := newTree(t, "casync", "--without=all")
	if got := run(t, "cairn", "verify", plain.renamed(t), "-s", plain.store); !strings.Contains(got.stderr, "directory tree") {
		t.Errorf("verify of a tree without flags says:\n%s", got.stderr)
	}
}

// TestImagesWithFlags: casync sets a tree's flags in an image's index, if requested.
func TestImagesWithFlags(t *testing.T) {
	t.Parallel()
	need.Tool(t, "casync")
	dir := t.TempDir()
	image := writeFile(t, dir, "image", testimages.Random(5, 300_000))
	index, out := filepath.Join(dir, "x.caibx"), filepath.Join(dir, "out")
	must(t, "casync", "--with=best", "make", "--store="+mkdir(t, filepath.Join(dir, "default.castr")), index, image)
	cairn(t, "assemble", index, out)
	wantSame(t, out, image)
	if err := os.Remove(out); err != nil {
		t.Fatal(err)
	}
	cairn(t, "plan", index, out)
}
