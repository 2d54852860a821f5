package e2e

import (
	"bytes"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cairn/internal/test/need"
	"cairn/testimages"
)

// desyncServer starts desync's server of chunks or indexes, and returns its URL. The server ends with the test.
func desyncServer(t *testing.T, kind, dir string, flags ...string) string {
	t.Helper()
	tool := need.Tool(t, "desync")
	for range 5 { // another program may take a free port
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := l.Addr().String()
		l.Close()
		cmd := exec.Command(tool, append([]string{kind, "-s", dir, "-l", address}, flags...)...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			_ = cmd.Wait()
			close(ended)
		}()
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			<-ended
		})
		if answers("http://"+address, ended) {
			return "http://" + address
		}
	}
	t.Fatal("desync found no port")
	return ""
}

// answers waits until a server answers, or has ended.
func answers(url string, ended chan struct{}) bool {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if answer, err := http.Get(url + "/"); err == nil {
			answer.Body.Close()
			return true
		}
		select {
		case <-ended:
			return false
		default:
		}
	}
	return false
}

// TestDesyncServer: desync's servers are stores to read and to write, with compressed and plain chunks. They
// reject requests for the other form, and report no sizes.
func TestDesyncServer(t *testing.T) {
	dir := t.TempDir()
	image := writeFile(t, dir, "image", testimages.Random(1, 900_000))
	lacking := filepath.Join(dir, "lacking.caibx")
	cairn(t, "make", lacking, writeFile(t, dir, "b", testimages.Random(2, 100_000)))
	indexes := desyncServer(t, "index-server", t.TempDir(), "-w")
	index := func(name string) string { return indexes + "/" + name + ".caibx" }
	urls := map[string]string{
		"compressed": desyncServer(t, "chunk-server", t.TempDir(), "-w"),
		"plain":      desyncServer(t, "chunk-server", t.TempDir(), "-w", "-u"),
	}
	for name, url := range urls {
		compression, other := "zstd", "none"
		if name == "plain" {
			compression, other = other, compression
		}
		out := filepath.Join(t.TempDir(), "out")
		fails(t, failed, "takes chunks in one form only: "+name, "make", index(name), image, "-s", url, "--compression", other)
		cairn(t, "make", index(name), image, "-s", url, "--compression", compression)
		again := run(t, "cairn", "make", index(name), image, "-s", url, "--compression", compression)
		if again.status != 0 || !strings.Contains(again.stderr, "none was written") {
			t.Errorf("making it again: %d, %s", again.status, again.stderr)
		}
		cairn(t, "assemble", index(name), out, "-s", url)
		wantSame(t, out, image)
		fails(t, notFound, "not found", "assemble", lacking, out+"2", "-s", url)
	}
	if got := cairn(t, "plan", index("plain"), filepath.Join(dir, "out"), "-s", urls["plain"]); !strings.Contains(got, "to download") {
		t.Errorf("plan says %s", got)
	}
	copied := desyncServer(t, "chunk-server", t.TempDir(), "-w", "-u")
	cairn(t, "store", "copy", urls["compressed"], copied, index("compressed"), "--compression", "none")
	cairn(t, "verify", index("plain"), "-s", copied)

	fails(t, failed, "leave the path out", "verify", index("plain"), "-s", urls["compressed"]+"/path")
	readOnly := desyncServer(t, "chunk-server", t.TempDir())
	fails(t, failed, "takes no uploads", "make", index("plain"), image, "-s", readOnly)
	t.Setenv("DESYNC_ENCRYPTION_KEY", strings.Repeat("0", 64))
	encrypted := desyncServer(t, "chunk-server", t.TempDir(), "--encryption")
	fails(t, failed, "are they encrypted", "verify", index("plain"), "-s", encrypted)
}

// TestProgressLines: with --progress=percent cairn writes the lines that desync writes for programs. Programs such as
// the updater of SteamOS read the words before the colon, the word after it, the percentage and the time.
func TestProgressLines(t *testing.T) {
	t.Parallel()
	desync := need.Tool(t, "desync")
	dir := t.TempDir()
	image := writeFile(t, dir, "image", testimages.Random(1, 3*mib))
	index, stored := filepath.Join(dir, "x.caibx"), mkdir(t, filepath.Join(dir, "default.castr"))
	ends := func(lines, phase string) (first, last string) {
		for line := range strings.Lines(lines) {
			if strings.HasPrefix(line, phase) && first == "" {
				first = line
			}
			if strings.HasPrefix(line, phase) {
				last = line
			}
		}
		return first, last
	}
	last := regexp.MustCompile(`^((Attempt 1: Assembling|Chunking) )? 100\.00% [0-9ms]+\n$`)
	for _, c := range []struct {
		phase        string
		ours, theirs []string
	}{
		{"Chunking", []string{"make", index, image}, []string{"make", "-s", stored, index, image}},
		{"Attempt 1: Assembling", []string{"assemble", index, image + "1"}, []string{"extract", "-s", stored, index, image + "2"}},
		{" ", []string{"verify", index, image}, []string{"verify-index", index, image}},
	} {
		cmd := exec.CommandContext(t.Context(), desync, c.theirs...)
		cmd.Env = append(os.Environ(), "DESYNC_ENABLE_PARSABLE_PROGRESS=1")
		text, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("desync %q: %v\n%s", c.theirs, err, text)
		}
		wantFirst, wantLast := ends(string(text), c.phase)
		r := run(t, "cairn", append(c.ours, "--progress", "percent")...)
		gotFirst, gotLast := ends(r.stderr, c.phase)
		if r.status != 0 || gotFirst != wantFirst || wantFirst == "" {
			t.Errorf("cairn %q: status %d, first line %q, want %q", c.ours, r.status, gotFirst, wantFirst)
		}
		if !last.MatchString(gotLast) || !last.MatchString(wantLast) {
			t.Errorf("cairn %q: last line %q, desync's is %q", c.ours, gotLast, wantLast)
		}
	}
	seeded := run(t, "cairn", "assemble", index, image+"3", "--seed", image, "--progress", "percent")
	if _, got := ends(seeded.stderr, "Attempt 1: Chunking Seed 1 "); !strings.Contains(got, " 100.00% ") {
		t.Errorf("the scan of a seed ends with %q", got)
	}
}

// TestDesyncReports: the hidden commands print what desync prints, byte for byte.
func TestDesyncReports(t *testing.T) {
	t.Parallel()
	need.Tool(t, "desync")
	dir := t.TempDir()
	old := slices.Concat(testimages.Random(1, 2*mib), make([]byte, mib))
	image := slices.Concat(old[:mib], testimages.Random(2, 300_000), old[mib:], old[:mib])
	m := makeWith(t, "cairn", digest512, smallSizes, writeFile(t, dir, "image", image))
	seed := makeWith(t, "cairn", digest512, smallSizes, writeFile(t, dir, "old", old))
	half := makeWith(t, "cairn", digest512, smallSizes, writeFile(t, dir, "half", image[:mib+100_000]))
	infos := filepath.Join(dir, "infos.json")
	must(t, "desync", "inspect-chunks", "-s", m.store, m.index, infos)
	for _, args := range [][]string{
		{"info", m.index},
		{"info", m.index, "-s", m.store},
		{"info", m.index, "-s", half.store, "-s", seed.store, "--format", "plain"},
		{"info", m.index, "--seed", seed.index, "--seed", half.index},
		{"info", m.index, "--seed", seed.index, "-c", half.store, "--chunks-info", infos},
		{"info", m.index, "--seed", seed.index, "--chunks-info", infos, "-f", "plain"},
		{"info", m.index, "-c", half.store, "-s", m.store, "-s", seed.store},
		{"inspect-chunks", m.index},
		{"inspect-chunks", m.index, "-s", m.store},
		{"inspect-chunks", m.index, "--store", half.store},
		{"list-chunks", m.index},
	} {
		want := must(t, "desync", args...)
		if got := cairn(t, append([]string{"desync-" + args[0]}, args[1:]...)...); got != want {
			t.Errorf("%q (-desync +cairn):\n%s", args, cmp.Diff(want, got))
		}
	}
	list := filepath.Join(dir, "ours.json")
	cairn(t, "desync-inspect-chunks", "-s", m.store, m.index, list)
	if !bytes.Equal(readFile(t, list), readFile(t, infos)) {
		t.Error("the file of desync-inspect-chunks differs from desync's")
	}
	fromStdin := runInput(t, string(readFile(t, m.index)), "cairn", "desync-info", "-", "-c", filepath.Join(dir, "none"))
	if want := must(t, "desync", "info", m.index); fromStdin.stdout != want {
		t.Errorf("the index of stdin, with a cache that does not exist yet: %s", fromStdin.stderr)
	}
	fails(t, notFound, "opening store", "desync-info", m.index, "-s", filepath.Join(dir, "none"))
	writeFile(t, dir, "bad.json", []byte("{"))
	fails(t, failed, "reading --chunks-info", "desync-info", m.index, "--chunks-info", filepath.Join(dir, "bad.json"))
	if strings.Contains(cairn(t, "help"), "desync-") {
		t.Error("the help lists a hidden command")
	}
}

// TestAddIsChop: store add leaves the chunks that desync chop leaves, and store copy those of desync cache.
func TestAddIsChop(t *testing.T) {
	t.Parallel()
	need.Tool(t, "desync")
	dir := t.TempDir()
	image := writeFile(t, dir, "image", slices.Concat(testimages.Random(1, mib), make([]byte, mib), testimages.Random(1, mib)))
	m := makeWith(t, "desync", digest256, smallSizes, image)
	chopped, added := mkdir(t, filepath.Join(dir, "chopped")), filepath.Join(dir, "added")
	must(t, "desync", "--digest", digest256, "chop", "-s", chopped, m.index, image)
	cairn(t, "store", "add", added, m.index, image)
	cached, copied := mkdir(t, filepath.Join(dir, "cached")), filepath.Join(dir, "copied")
	must(t, "desync", "--digest", digest256, "cache", "-s", m.store, "-c", cached, m.index, m.index)
	cairn(t, "store", "copy", m.store, copied, m.index, m.index)
	want := fileNames(t, m.store)
	for _, dir := range []string{chopped, added, cached, copied} {
		if diff := cmp.Diff(want, fileNames(t, dir)); diff != "" {
			t.Errorf("%s (-store +%s):\n%s", dir, filepath.Base(dir), diff)
		}
	}
	must(t, "desync", "--digest", digest256, "verify", "-s", added)
}

// fileNames returns the paths of the files below a directory.
func fileNames(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
