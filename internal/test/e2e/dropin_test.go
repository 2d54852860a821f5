package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/internal/test/looptest"
	"cairn/internal/test/need"
	"cairn/testimages"
)

// TestDropinMakes: an index and store that cairn makes under the name casync or desync are those of the tool for the same
// arguments, and the tool extracts them. Of an index of desync, one bit of the feature flags differs.
func TestDropinMakes(t *testing.T) {
	t.Parallel()
	ours := links(t)
	for _, test := range []struct {
		tool string
		args []string
	}{
		{"casync", []string{"make", "--store=S", "X.caibx", "IMAGE"}},
		{"casync", []string{"make", "--chunk-size=64000", "X.caibx", "--sto", "S", "IMAGE"}},
		{"casync", []string{"--digest=sha256", "--chunk-size=4K:16384:64K", "make", "--store=S", "X.caibx", "IMAGE"}},
		{"casync", []string{"make", "X.caibx", "IMAGE"}},
		{"desync", []string{"make", "-s", "S", "X.caibx", "IMAGE"}},
		{"desync", []string{"--digest", "sha256", "make", "-m", "4:16:64", "X.caibx", "--store", "S", "IMAGE"}},
		{"desync", []string{"make", "X.caibx", "IMAGE"}},
	} {
		real := need.Tool(t, test.tool)
		image := writeFile(t, t.TempDir(), "image", append(testimages.Random(5, 900_000), make([]byte, 700_000)...))
		args := slices.Clone(test.args)
		args[slices.Index(args, "IMAGE")] = image
		t.Run(test.tool+" "+strings.Join(test.args, " "), func(t *testing.T) {
			t.Parallel()
			theirDir, ourDir := t.TempDir(), t.TempDir()
			for _, dir := range []string{theirDir, ourDir} {
				mkdir(t, filepath.Join(dir, "S"))
			}
			theirs := runIn(t, theirDir, nil, real, args...)
			got := runIn(t, ourDir, nil, filepath.Join(ours, test.tool), args...)
			if theirs.status != 0 || got.status != 0 || theirs.stdout != got.stdout {
				t.Fatalf("exit status %d and %d\n%s%s\n%s%s", theirs.status, got.status, theirs.stdout, theirs.stderr, got.stdout, got.stderr)
			}
			want, index := readFile(t, filepath.Join(theirDir, "X.caibx")), readFile(t, filepath.Join(ourDir, "X.caibx"))
			if test.tool == "desync" {
				want[23] |= 0x10 // casync's flag for .caexclude files, which says nothing about an image
			}
			if !bytes.Equal(index, want) {
				t.Error("the index differs")
			}
			if ours, theirs := names(t, ourDir), names(t, theirDir); !slices.Equal(ours, theirs) {
				t.Errorf("files\n%v, want\n%v", ours, theirs)
			}
			extractBoth(t, test.tool, ours, real, theirDir, ourDir, image)
		})
	}
}

// extractBoth extracts what each made with the other.
func extractBoth(t *testing.T, tool, ours, real, theirDir, ourDir, image string) {
	t.Helper()
	if len(names(t, ourDir)) == 2 { // the index and an empty store
		return
	}
	store := "S"
	if _, err := os.Stat(filepath.Join(ourDir, "default.castr")); err == nil {
		store = "default.castr"
	}
	args := []string{"extract", "--store", store, "X.caibx", "out"}
	if readIndex(t, filepath.Join(ourDir, "X.caibx")).Algorithm().String() == digest256 && tool == "desync" {
		args = append(args, "--digest", digest256)
	}
	for dir, program := range map[string]string{theirDir: filepath.Join(ours, tool), ourDir: real} {
		if r := runIn(t, dir, nil, program, args...); r.status != 0 {
			t.Fatalf("%s %q: %s", program, args, r.stderr)
		}
		wantSame(t, filepath.Join(dir, "out"), image)
	}
}

// names returns the names of all files below a directory.
func names(t *testing.T, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if name, _ := filepath.Rel(dir, path); err == nil && (!d.IsDir() || name == "S") {
			all = append(all, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestDropinDevice: casync limits a block device to the size of its file system, and so does cairn under its name.
func TestDropinDevice(t *testing.T) {
	t.Parallel()
	real, ours := need.Tool(t, "casync"), filepath.Join(links(t), "casync")
	p := pairs(t)[0]
	file := looptest.File(t, fileSize(t, p.a)+3<<20)
	must(t, "dd", "if="+p.a, "of="+file, "conv=notrunc,sparse", "bs=1M", "status=none")
	node := looptest.Attach(t, file, 512)
	theirDir, ourDir := t.TempDir(), t.TempDir()
	for _, args := range [][]string{{"make", "x.caibx", node}, {"digest", node}} {
		want, got := runIn(t, theirDir, nil, real, args...), runIn(t, ourDir, nil, ours, args...)
		if got.status != 0 || got.stdout != want.stdout {
			t.Errorf("%q: %q, want %q\n%s", args, got.stdout, want.stdout, got.stderr)
		}
	}
	wantSame(t, filepath.Join(ourDir, "x.caibx"), filepath.Join(theirDir, "x.caibx"))
}

// TestDropinLikeDesync runs the command lines of desync's own tests of its commands with desync and with cairn under its
// name. Both end with the same status, print the same, and write the same files. differs gives the reason where cairn
// does something else by intention.
func TestDropinLikeDesync(t *testing.T) {
	t.Parallel()
	const (
		proven  = "an index of --ignore counts only if the store holds its chunks"
		zeros   = "chunks of zeros are not kept in a cache"
		lenient = "a directory that does not exist is made"
		robust  = "a wrong seed costs a download, and never ends the job"
		status  = "damaged chunks are an error"
		refused = "refused, with what to do instead"
	)
	real, ours := need.Tool(t, "desync"), filepath.Join(links(t), "desync")
	world := desyncWorld(t, real)
	for _, test := range []struct{ line, differs string }{
		{"cache --store blob1.store blob1.caibx -c OUT", ""},
		{"cache --store blob1.store --store blob2.store blob1.caibx -c OUT", ""},
		{"cache --store blob1.store --store blob2.store blob1.caibx blob2.caibx -c OUT", ""},
		{"cache --store blob1.store blob1.caibx -c OUT/s --ignore blob2.caibx", ""},
		{"cat --store blob1.store blob1.caibx", ""},
		{"cat --store blob1.store -o 1024 blob1.caibx", ""},
		{"cat --store blob1.store -o 1024 -l 2048 blob1.caibx", ""},
		{"cat --store blob1.store -o 1024 -l 2048 blob1.caibx OUT/slice", ""},
		{"chop -s OUT/s blob1.caibx blob1", ""},
		{"chop -s OUT/s --ignore blob2.caibx blob1.caibx blob1", proven},
		{"chop blob1.caibx blob1", ""},
		{"chop -s OUT/absent blob1.caibx blob1", lenient},
		{"extract --store blob1.store blob1.caibx OUT/new", ""},
		{"extract --store blob1.store blob1.caibx OUT/different", ""},
		{"extract --in-place --store empty.store blob1.caibx OUT/complete", ""},
		{"extract --store blob1.store --seed blob2.caibx blob1.caibx OUT/new", ""},
		{"extract -s blob1.store --seed blob2.caibx --seed blob1.caibx blob1.caibx OUT/new", ""},
		{"extract -s blob1.store --seed-dir . --skip-invalid-seeds blob1.caibx OUT/new", ""},
		{"extract --store blob1.store --seed blob2_without_data.caibx:blob2 blob1.caibx OUT/new", ""},
		{"extract --store blob1.store --seed blob2_without_data.caibx:blob2:reserved_options blob1.caibx OUT/new", ""},
		{"extract -s blob1.store --seed blob2_without_data.caibx:blob2 --seed blob1_without_data.caibx:blob1 blob1.caibx OUT/new", ""},
		{"extract -s blob1.store --seed blob2_without_data.caibx:blob2 --seed blob1.caibx blob1.caibx OUT/new", ""},
		{"extract -s blob1.store -c OUT blob1.caibx OUT/new", zeros},
		{"extract -s blob2.store -s blob1.store blob1.caibx OUT/new", ""},
		{"extract -n 1 -s blob2.store -s blob1.store --cache OUT blob1.caibx OUT/new", zeros},
		{"extract --store blob1.store --seed blob2_corrupted.caibx --skip-invalid-seeds blob1.caibx OUT/new", ""},
		{"extract --store empty.store --seed blob2_corrupted.caibx --seed blob1.caibx --skip-invalid-seeds blob1.caibx OUT/new", ""},
		{"extract -s blob1.store --seed-dir . --seed blob1.caibx blob1.caibx OUT/new", ""},
		{"extract -s blob1.store --seed-dir absent blob1.caibx OUT/new", ""},
		{"extract --store empty.store --seed blob2_corrupted.caibx --seed blob1.caibx blob1.caibx OUT/new", ""},
		{"extract --store empty.store --seed blob1.caibx blob1.caibx OUT/new", ""},
		{"extract --store blob1.store --seed blob2_corrupted.caibx --regenerate-invalid-seeds blob1.caibx OUT/new", ""},
		{"extract --store empty.store --seed blob1_corrupted_index.caibx --regenerate-invalid-seeds blob1.caibx OUT/new", ""},
		{"extract --store DEAD|blob1.store blob1.caibx OUT/new", ""},
		{"extract --store blob1.store --seed blob2_corrupted.caibx blob1.caibx OUT/new", robust},
		{"extract --store blob1.store --seed blob_missing blob1.caibx OUT/new", ""},
		{"extract --store blob1.store --seed blob2_without_data.caibx blob1.caibx OUT/new", robust},
		{"extract --store empty.store --seed blob2_corrupted.caibx --seed blob1.caibx blob2.caibx OUT/new", robust},
		{"extract --store blob2.store --seed blob1_corrupted_index.caibx --seed blob1.caibx blob2.caibx OUT/new", robust},
		{"extract --store blob2.store --seed blob1_corrupted_index.caibx blob2.caibx OUT/new", robust},
		{"extract --store blob1.store --seed blob1_corrupted_index.caibx --regenerate-invalid-seeds --skip-invalid-seeds blob1.caibx OUT/new", ""},
		{"info -s blob1.store blob1.caibx", ""},
		{"info -s blob1.store --seed blob2.caibx blob1.caibx", ""},
		{"info -s blob2.store --seed blob1.caibx --cache blob2.cache --chunks-info infos.json blob2.caibx", ""},
		{"info -s blob2.store --cache blob2.cache --chunks-info infos.json blob2.caibx", ""},
		{"info -s blob2.store --chunks-info infos_missing.json blob2.caibx", ""},
		{"info --format plain -s blob2.store blob2.caibx", ""},
		{"inspect-chunks -s blob2.store blob2.caibx", ""},
		{"inspect-chunks -s blob2.cache blob2.caibx", ""},
		{"inspect-chunks blob2.caibx OUT/infos", ""},
		{"list-chunks blob1.caibx", ""},
		{"chunk -m 2:8:32 -S 100 blob1", ""},
		{"verify -s blob1.store", ""},
		{"verify -s damaged.store", status},
		{"verify -s OUT/damaged -r", ""},
		{"verify-index blob1.caibx blob1", ""},
		{"verify-index blob2.caibx blob2", ""},
		{"verify-index blob2.caibx blob1", ""},
		{"--config ambiguous.json extract -s blob1.store blob1.caibx OUT/new", ""},
		{"--config absent.json extract -s blob1.store blob1.caibx OUT/new", ""},
		{"--config plain.json make -s OUT/s OUT/x.caibx blob1", ""},
		{"--config plain.json extract -s blob1.store blob1.caibx OUT/new -e 20 -b 1s", ""},
		{"prune -s OUT/damaged blob2.caibx --yes", refused},
		{"tar -i -s OUT/s OUT/x.caidx OUT/s", refused},
	} {
		t.Run(test.line, func(t *testing.T) {
			t.Parallel()
			line := strings.ReplaceAll(test.line, "DEAD", deadURL(t))
			theirs, theirFiles := world.try(t, real, line)
			got, files := world.try(t, ours, line)
			same := (theirs.status == 0) == (got.status == 0) && theirs.stdout == got.stdout && slices.Equal(files, theirFiles)
			if same != (test.differs == "") {
				t.Errorf("the results differ: %v, want %q\ndesync: %d\n%s%v\ncairn: %d\n%s%v",
					!same, test.differs, theirs.status, theirs.stderr, theirFiles, got.status, got.stderr, files)
			}
		})
	}
}

// TestDropinStats: --print-stats prints what desync prints. The numbers by source differ a little: desync reads zeros and
// repeated chunks from the store or from seeds, and cairn does not.
func TestDropinStats(t *testing.T) {
	t.Parallel()
	real, ours := need.Tool(t, "desync"), filepath.Join(links(t), "desync")
	world := desyncWorld(t, real)
	stats := func(program, line string) (s map[string]int64) {
		got, _ := world.try(t, program, line)
		parse(t, got.stdout, &s)
		return s
	}
	for _, line := range []string{
		"extract --store blob1.store blob1.caibx OUT/new --print-stats",
		"extract --store blob1.store --seed blob2.caibx --print-stats blob1.caibx OUT/new",
	} {
		got, want := stats(ours, line), stats(real, line)
		const seeds, stored, inPlace = "chunks-from-seeds", "chunks-from-store", "chunks-in-place"
		if sum := got[seeds] + got[stored] + got[inPlace]; sum != want["chunks-total"] || got[stored] > want[stored] {
			t.Errorf("%s: cairn %v, desync %v", line, got, want)
		}
		for _, bySource := range []string{seeds, stored, "bytes-copied-from-seeds", "bytes-cloned-from-seeds"} {
			got[bySource], want[bySource] = 0, 0
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-desync +cairn):\n%s", line, diff)
		}
	}
	got, _ := world.try(t, ours, "make OUT/x.caibx blob1 --print-stats")
	if !strings.Contains(got.stderr, `"ChunksAccepted": `) {
		t.Errorf("make --print-stats prints\n%s", got.stderr)
	}
}

// desyncFiles is a directory with the kinds of files that desync's tests use.
type desyncFiles string

// desyncWorld makes two blobs that share most chunks, and what desync makes of them.
func desyncWorld(t *testing.T, desync string) desyncFiles {
	t.Helper()
	dir := t.TempDir()
	one := append(testimages.Random(1, 900_000), make([]byte, 300_000)...)
	two := append(testimages.Random(2, 40_000), one[30_000:]...)
	blob := map[string][]byte{"blob1": one, "blob2": two, "blob2_corrupted": slices.Concat(two[:500_000], []byte("damaged"), two[500_007:]), "blob1_corrupted_index": one}
	for name, data := range blob {
		writeFile(t, dir, name, data)
	}
	do := func(args ...string) {
		if r := runIn(t, dir, nil, desync, args...); r.status != 0 {
			t.Fatalf("desync %q: %s", args, r.stderr)
		}
	}
	for _, name := range []string{"blob1.store", "blob2.store", "blob2.cache", "empty.store"} {
		mkdir(t, filepath.Join(dir, name))
	}
	for _, name := range []string{"blob1", "blob2"} {
		do("make", "-m", "2:8:32", "-s", name+".store", name+".caibx", name)
		must(t, "cp", filepath.Join(dir, name+".caibx"), filepath.Join(dir, name+"_without_data.caibx"))
	}
	must(t, "cp", filepath.Join(dir, "blob2.caibx"), filepath.Join(dir, "blob2_corrupted.caibx"))
	must(t, "cp", filepath.Join(dir, "blob2.caibx"), filepath.Join(dir, "blob1_corrupted_index.caibx"))
	do("inspect-chunks", "-s", "blob2.store", "blob2.caibx", "infos.json")
	parts, err := filepath.Glob(filepath.Join(dir, "blob2.store", "[0-3]*"))
	if err != nil || len(parts) == 0 {
		t.Fatal(parts, err)
	}
	must(t, "cp", append(append([]string{"-r"}, parts...), filepath.Join(dir, "blob2.cache"))...)
	do("inspect-chunks", "-s", "blob2.cache", "blob2.caibx", "infos_missing.json")
	damagedStore := filepath.Join(dir, "damaged.store")
	must(t, "cp", "-r", filepath.Join(dir, "blob1.store"), damagedStore)
	writeFile(t, mkdir(t, filepath.Join(damagedStore, "1234")), "1234567890000000000000000000000000000000000000000000000000000000.cacnk", []byte("invalid"))
	writeFile(t, dir, "ambiguous.json", []byte(`{"store-options": {"blob1.store/": {"uncompressed": true}, "blob1.store": {}}}`))
	writeFile(t, dir, "plain.json", []byte(`{"store-options": {"*/s": {"uncompressed": true, "error-retry": 2}}}`))
	return desyncFiles(dir)
}

// try runs a command line in the directory. It returns the result, and the names of the files in the new directory OUT,
// with a checksum of each that is not a chunk or an index.
func (w desyncFiles) try(t *testing.T, program, line string) (r ran, files []string) {
	t.Helper()
	out := t.TempDir()
	writeFile(t, out, "different", []byte{0, 1, 2, 3})
	must(t, "cp", filepath.Join(string(w), "blob1"), filepath.Join(out, "complete"))
	must(t, "cp", "-r", filepath.Join(string(w), "damaged.store"), filepath.Join(out, "damaged"))
	mkdir(t, filepath.Join(out, "s"))
	r = runIn(t, string(w), []string{"HOME=" + out}, program, strings.Fields(strings.ReplaceAll(line, "OUT", out))...)
	for _, name := range names(t, out) {
		if !strings.HasSuffix(name, ".cacnk") && !strings.HasSuffix(name, ".caibx") {
			name += fmt.Sprintf(" %x", sha256.Sum256(readFile(t, filepath.Join(out, name))))
		}
		if !strings.HasPrefix(name, ".cairn-cache") && !strings.Contains(name, ".partial ") {
			files = append(files, name)
		}
	}
	return r, files
}
