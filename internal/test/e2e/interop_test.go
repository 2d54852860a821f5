package e2e

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"cairn/internal/test/looptest"
	"cairn/internal/test/need"
	"cairn/testimages"
)

// sizes are chunk sizes as arguments of cairn and desync in KiB, and of casync in bytes.
type sizes struct{ kib, bytes string }

var (
	usualSizes = sizes{"16:64:256", "16384:65536:262144"}
	smallSizes = sizes{"1:4:16", "1024:4096:16384"}
	largeSizes = sizes{"256:1024:4096", "262144:1048576:4194304"}
)

const (
	digest512 = "sha512-256"
	digest256 = "sha256"
)

// made is an index and its store.
type made struct{ index, store string }

// makeWith makes an index of an image and a new store with one of the tools.
func makeWith(t testing.TB, tool, digest string, s sizes, image string) made {
	t.Helper()
	dir := t.TempDir()
	m := made{filepath.Join(dir, "x.caibx"), mkdir(t, filepath.Join(dir, "x.castr"))}
	switch tool {
	case "cairn":
		cairn(t, "make", "-s", m.store, "--digest", digest, "--chunk-size", s.kib, m.index, image)
	case "casync":
		must(t, "casync", "make", "--store="+m.store, "--digest="+digest, "--chunk-size="+s.bytes, m.index, image)
	case "desync":
		must(t, "desync", "--digest", digest, "make", "-s", m.store, "-m", s.kib, m.index, image)
	}
	return m
}

// extractWith assembles the image of an index with one of the tools.
func extractWith(t testing.TB, tool, digest string, m made) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	switch tool {
	case "cairn":
		cairn(t, "assemble", "-s", m.store, m.index, out)
	case "casync":
		must(t, "casync", "extract", "--store="+m.store, "--seed-output=no", m.index, out)
	case "desync":
		must(t, "desync", "--digest", digest, "extract", "-s", m.store, m.index, out)
	}
	return out
}

// TestIndexIsCasyncs tests each chunk size and each digest. CAIRN_LONG=1 tests each combination.
func TestIndexIsCasyncs(t *testing.T) {
	t.Parallel()
	need.Tool(t, "casync")
	for _, i := range append(edgeImages(t), systems(t)...) {
		for _, s := range []sizes{usualSizes, smallSizes, largeSizes} {
			for _, digest := range []string{digest512, digest256} {
				if digest == digest256 && s != usualSizes && !long() {
					continue
				}
				t.Run(strings.Join([]string{i.name, s.kib, digest}, " "), func(t *testing.T) {
					t.Parallel()
					wantCasyncsIndex(t, digest, s, i.path)
				})
			}
		}
	}
}

// wantCasyncsIndex compares cairn's index of an image with casync's, byte by byte. cairn finds every chunk in
// casync's store, so it stores none.
func wantCasyncsIndex(t testing.TB, digest string, s sizes, image string) {
	t.Helper()
	m := makeWith(t, "casync", digest, s, image)
	index := filepath.Join(t.TempDir(), "ours.caibx")
	out := cairn(t, "make", "--json", "-s", m.store, "--digest", digest, "--chunk-size", s.kib, index, image)
	if !bytes.Equal(readFile(t, index), readFile(t, m.index)) {
		t.Errorf("%s, %s, %s: the index of cairn differs from casync's", image, digest, s.kib)
	}
	cairn(t, "make", "--index-only", "--digest", digest, "--chunk-size", s.kib, index, image)
	if !bytes.Equal(readFile(t, index), readFile(t, m.index)) {
		t.Errorf("%s, %s, %s: the index of cairn make --index-only differs from casync's", image, digest, s.kib)
	}
	var result struct {
		New int64 `json:"new_chunks"`
	}
	if parse(t, out, &result); result.New != 0 {
		t.Errorf("cairn stored %d chunks that casync had stored already", result.New)
	}
}

// TestOthersExtract: casync and desync assemble images that cairn made.
func TestOthersExtract(t *testing.T) {
	t.Parallel()
	eachInterop(t, func(t *testing.T, digest, image string) {
		m := makeWith(t, "cairn", digest, usualSizes, image)
		for _, tool := range []string{"casync", "desync"} {
			wantSame(t, extractWith(t, tool, digest, m), image)
		}
	})
}

// TestAssembleOthers: cairn assembles images that casync and desync made.
func TestAssembleOthers(t *testing.T) {
	t.Parallel()
	eachInterop(t, func(t *testing.T, digest, image string) {
		for _, tool := range []string{"casync", "desync"} {
			m := makeWith(t, tool, digest, usualSizes, image)
			wantSame(t, extractWith(t, "cairn", digest, m), image)
			cairn(t, "verify", "-s", m.store, m.index)
		}
	})
}

// TestAssembleOtherCodecs: cairn assembles and verifies images that casync compressed with xz and gzip, also in
// a store with chunks of its own.
func TestAssembleOtherCodecs(t *testing.T) {
	t.Parallel()
	need.Tool(t, "casync")
	image := writeFile(t, t.TempDir(), "image", append(testimages.Random(1, 500_000), make([]byte, 1<<20)...))
	for _, codec := range []string{"xz", "gzip"} {
		dir := t.TempDir()
		m := made{filepath.Join(dir, "x.caibx"), mkdir(t, filepath.Join(dir, "x.castr"))}
		must(t, "casync", "make", "--compression="+codec, "--store="+m.store, m.index, image)
		ours := made{filepath.Join(dir, "ours.caibx"), m.store}
		cairn(t, "make", "-s", m.store, "--chunk-size", smallSizes.kib, ours.index, image)
		for _, m := range []made{m, ours} {
			wantSame(t, extractWith(t, "cairn", digest512, m), image)
			cairn(t, "verify", "-s", m.store, m.index)
		}
	}
}

// eachInterop runs a test with all images and both digests.
func eachInterop(t *testing.T, try func(t *testing.T, digest, image string)) {
	need.Tool(t, "casync")
	need.Tool(t, "desync")
	for _, i := range append(edgeImages(t), systems(t)...) {
		for _, digest := range []string{digest512, digest256} {
			t.Run(i.name+" "+digest, func(t *testing.T) {
				t.Parallel()
				try(t, digest, i.path)
			})
		}
	}
}

func TestMakeFromStdin(t *testing.T) {
	t.Parallel()
	for _, i := range edgeImages(t) {
		dir := t.TempDir()
		m := made{filepath.Join(dir, "x.caibx"), filepath.Join(dir, "x.castr")}
		r := runInput(t, string(readFile(t, i.path)), "cairn", "make", "-s", m.store, m.index, "-")
		if r.status != 0 {
			t.Fatalf("making %s from stdin: %s", i.name, r.stderr)
		}
		want := makeWith(t, "cairn", digest512, usualSizes, i.path)
		if !bytes.Equal(readFile(t, m.index), readFile(t, want.index)) {
			t.Errorf("%s: the index of stdin differs from the file's", i.name)
		}
		wantSame(t, extractWith(t, "cairn", digest512, m), i.path)
	}
}

// TestMakeIndexOnly: an index without a store is the one that desync makes without a store. Memory does not grow with the
// image, also when it is a stream.
func TestMakeIndexOnly(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	image := writeFile(t, dir, "image", testimages.Random(1, 3<<20))
	ours, theirs := filepath.Join(dir, "ours", "x.caibx"), filepath.Join(dir, "theirs.caibx")
	mkdir(t, filepath.Dir(ours))
	cairn(t, "make", "--index-only", ours, image)
	must(t, "desync", "make", theirs, image)
	must(t, "desync", "verify-index", ours, image)
	if must(t, "desync", "list-chunks", ours) != must(t, "desync", "list-chunks", theirs) {
		t.Error("the chunks of the index differ from desync's")
	}
	if files, err := os.ReadDir(filepath.Dir(ours)); err != nil || len(files) != 1 {
		t.Errorf("beside the index are %v, %v", files, err)
	}

	const size, most = 512 << 20, 96 << 20
	zeros, err := os.Open("/dev/zero")
	if err != nil {
		t.Fatal(err)
	}
	defer zeros.Close()
	// The kernel's figure includes the memory of the process that starts a program, and this test needs more than GNU time.
	file := filepath.Join(dir, "peak")
	cmd := exec.CommandContext(t.Context(), need.Tool(t, "time"), "-f", "%M", "-o", file, need.Tool(t, "cairn"),
		"make", "--index-only", "--jobs", "2", ours, "-")
	cmd.Stdin = io.LimitReader(zeros, size) // through a pipe
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	peak, err := strconv.ParseInt(strings.TrimSpace(string(readFile(t, file))), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if peak<<10 > most && !raceDetector {
		t.Errorf("an index of %d bytes takes %d KiB of memory, want at most %d", size, peak, most>>10)
	}
}

// TestMakeFromDevice: casync shortens a device to its file system; cairn does so with an option.
func TestMakeFromDevice(t *testing.T) {
	t.Parallel()
	need.Tool(t, "casync")
	if testing.Short() {
		t.Skip("the images of a short run have no file system")
	}
	for _, p := range pairs(t) {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			file := looptest.File(t, fileSize(t, p.a)+3<<20)
			must(t, "dd", "if="+p.a, "of="+file, "conv=notrunc,sparse", "bs=1M", "status=none")
			node := looptest.Attach(t, file, 512)
			want := readFile(t, makeWith(t, "casync", digest512, usualSizes, node).index)
			dir := t.TempDir()
			index := filepath.Join(dir, "x.caibx")
			cairn(t, "make", "--size", "filesystem", index, node)
			if !bytes.Equal(readFile(t, index), want) {
				t.Error("the index of the file system differs from casync's of the device")
			}
			cairn(t, "make", index, node)
			wantSame(t, extractWith(t, "cairn", digest512, made{index, filepath.Join(dir, "default.castr")}), file)
		})
	}
}
