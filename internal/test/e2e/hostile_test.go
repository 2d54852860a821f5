package e2e

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"cairn/testimages"
)

// TestBadIndex: every command refuses a damaged or malicious index before it does anything.
func TestBadIndex(t *testing.T) {
	t.Parallel()
	r := noise(t, mib)
	good := readFile(t, r.index("b"))
	field := func(at int, value uint64) []byte {
		bad := slices.Clone(good)
		binary.LittleEndian.PutUint64(bad[at:], value)
		return bad
	}
	for _, c := range []struct {
		name, words string
		index       []byte
	}{
		{"nothing", "invalid index", nil},
		{"a text", "not a casync index", []byte(strings.Repeat("<html>", 100))},
		{"truncated in its head", "invalid index", good[:30]},
		{"truncated in its table", "truncated", good[:len(good)-41]},
		{"truncated in its tail", "truncated", good[:len(good)-1]},
		{"too long", "follow", append(slices.Clone(good), 0)},
		{"unknown features", "unknown feature flags", field(16, 1<<40)},
		{"no chunk sizes", "chunk sizes", field(24, 0)},
		{"vast chunks", "chunk size", field(40, 1<<62)},
		{"chunks that run back", "chunk 1 ends", field(64+40, 5)},
		{"chunks beyond all bounds", "2^63", field(64, 1<<63)},
		{"a chunk larger than the largest", "chunk 0 ends", field(64, 1<<40)},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			index := writeFile(t, dir, "bad.caibx", c.index)
			target := writeFile(t, dir, "target", []byte("old"))
			for _, args := range [][]string{
				{"assemble", index, target}, {"assemble", index, filepath.Join(dir, "new")}, {"plan", index, target},
				{"info", index}, {"cat", index}, {"verify", index}, {"serve", index}, {"diff", r.index("b"), index},
			} {
				fails(t, damaged, c.words, args...)
			}
			wantOnly(t, dir, "bad.caibx", "target")
			if string(readFile(t, target)) != "old" {
				t.Error("the target has changed")
			}
		})
	}
}

// TestBadStore: wrong or missing data of a store is never written under a final name, and never printed.
func TestBadStore(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, words string
		status      int
		harm        func(t *testing.T, store, chunk string)
	}{
		{"gone chunk", "not found", notFound, func(t *testing.T, _, chunk string) { must(t, "rm", chunk) }},
		{"other chunk", "is corrupt", damaged, func(t *testing.T, _, chunk string) {
			writeFile(t, filepath.Dir(chunk), filepath.Base(chunk), pack(t, testimages.Random(77, 50_000)))
		}},
		{"truncated chunk", "is corrupt", damaged, func(t *testing.T, _, chunk string) {
			must(t, "truncate", "-s", "-7", chunk)
		}},
		{"empty chunk", "is corrupt", damaged, func(t *testing.T, _, chunk string) {
			must(t, "truncate", "-s", "0", chunk)
		}},
		{"chunk bomb", "is corrupt", damaged, func(t *testing.T, _, chunk string) {
			writeFile(t, filepath.Dir(chunk), filepath.Base(chunk), pack(t, make([]byte, 300*mib)))
		}},
		{"vast chunk", "is corrupt", damaged, func(t *testing.T, _, chunk string) {
			must(t, "truncate", "-s", "8G", chunk)
		}},
		{"no store", "not found", notFound, func(t *testing.T, store, _ string) { must(t, "rm", "-r", store) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := noise(t, mib)
			x, store := readIndex(t, r.index("b")), filepath.Join(r.dir, "default.castr")
			chunk := chunkFile(store, x.At(x.Len()/2).Digest)
			must(t, "chmod", "u+w", chunk)
			c.harm(t, store, chunk)
			wantHarmless(t, c.status, c.words, r.index("b"))
			if c.name != "no store" { // over HTTP it looks like an empty store
				wantHarmless(t, c.status, c.words, newNginx(t, r.dir).url+"/b.caibx")
			}
		})
	}
}

// pack compresses data to a chunk file.
func pack(t testing.TB, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(data, nil)
}

// wantHarmless assembles from a bad store: assemble fails, leaves targets as they were, and uses little memory.
func wantHarmless(t *testing.T, status int, words, index string) {
	t.Helper()
	dir := t.TempDir()
	old := writeFile(t, dir, "old", []byte("old"))
	for _, target := range []string{old, filepath.Join(dir, "new")} {
		args := []string{"assemble", "--state", "", index, target}
		took := filepath.Join(t.TempDir(), "KiB")
		got := run(t, "time", append([]string{"--quiet", "--format=%M", "--output=" + took, "cairn"}, args...)...)
		checkFailed(t, got, status, words, args)
		const limit = 200 << 10
		kib, err := strconv.Atoi(strings.TrimSpace(string(readFile(t, took))))
		if err != nil || kib > limit && !raceDetector {
			t.Errorf("cairn took %d KiB of memory (%v), want at most %d", kib, err, limit)
		}
	}
	wantOnly(t, dir, "old", ".old.partial", ".new.partial") // the next run continues with them
	if string(readFile(t, old)) != "old" {
		t.Error("the target has changed")
	}
	if r := run(t, "cairn", "verify", index); r.status != status && r.status != damaged || r.stdout != "" {
		t.Errorf("verify of the store: %+v", r)
	}
	if r := run(t, "cairn", "cat", index); r.status != status || len(r.stdout) > mib*3/4 {
		t.Errorf("cat: exit status %d and %d bytes, want %d and less than all", r.status, len(r.stdout), status)
	}
}

// TestBadStoreInPlace: an unfinished slot does not look like a whole one, and is completed once the store is
// repaired.
func TestBadStoreInPlace(t *testing.T) {
	t.Parallel()
	r := publish(t, small(t))
	s := newSlots(t, r, false)
	x := readIndex(t, r.index("b"))
	chunk := chunkFile(filepath.Join(r.dir, "default.castr"), x.At(x.Find(x.Size()/4)).Digest)
	whole := readFile(t, chunk)
	must(t, "truncate", "-s", "20", chunk)
	before := s.slotB(t)
	fails(t, damaged, "is corrupt", "assemble", r.index("b"), s.b)
	s.wantUnfinished(t, before)
	if err := os.WriteFile(chunk, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	cairn(t, "assemble", r.index("b"), s.b)
	cairn(t, "verify", r.index("b"), s.b)
}

// TestWrongDigest: an index with the digest of no chunk, or of another chunk.
func TestWrongDigest(t *testing.T) {
	t.Parallel()
	r := noise(t, mib)
	index := readFile(t, r.index("b"))
	row := func(n int) []byte { return index[64+40*n+8:][:32] }
	row(3)[7] ^= 1
	dir := t.TempDir()
	store := filepath.Join(r.dir, "default.castr")
	out := filepath.Join(dir, "out")
	fails(t, notFound, "not found", "assemble", "-s", store, writeFile(t, dir, "x", index), out)
	copy(row(3), row(4))
	fails(t, damaged, "is corrupt", "assemble", "-s", store, writeFile(t, dir, "x", index), out)
	wantOnly(t, dir, "x", ".out.partial")
}

// TestAbsentIndex: a web server answers that there is no such file.
func TestAbsentIndex(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	index := newNginx(t, dir).url + "/absent.caibx"
	out := filepath.Join(dir, "out")
	for _, args := range [][]string{
		{"assemble", index, out}, {"plan", index, out},
		{"info", index}, {"cat", index}, {"verify", index}, {"serve", index},
	} {
		fails(t, notFound, "absent.caibx: not found", args...)
	}
	wantOnly(t, dir)
}

// TestStoreGone: a job sends requests to a dead server until its patience ends, and then fails. A signal ends the
// wait at once.
func TestStoreGone(t *testing.T) {
	t.Parallel()
	r := noise(t, mib)
	url := deadURL(t)
	dir := t.TempDir()
	t.Run("interrupted", func(t *testing.T) {
		t.Parallel()
		eachEnding(t, func(t *testing.T, end func(*job) bool) {
			dir := t.TempDir()
			j := start(t, nil, "assemble", "--progress=json", "-s", url, r.index("b"), filepath.Join(dir, "out"))
			j.stderr.await(t, `"event":"start"`)
			end(j)
			wantNone(t, filepath.Join(dir, "out"))
		})
	})
	for name, args := range map[string][]string{
		"assemble": {"assemble", "-s", url, r.index("b"), filepath.Join(dir, "out")},
		"index":    {"assemble", url + "/b.caibx", filepath.Join(dir, "out")},
		"cat":      {"cat", "-s", url, r.index("b")},
		"verify":   {"verify", "-s", url, r.index("b")},
		"plan":     {"plan", "-s", url, r.index("b"), filepath.Join(dir, "out")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fails(t, notFound, "store unavailable", append(args, "--patience", "1s")...)
			wantNone(t, filepath.Join(dir, "out"))
		})
	}
}

// TestImageShrinks: an image that shrinks while it is read gets no index.
func TestImageShrinks(t *testing.T) {
	t.Parallel()
	image := writeFile(t, t.TempDir(), "image", testimages.Random(6, 32*mib))
	dir := t.TempDir()
	// Strong compression makes the job slow.
	index := filepath.Join(dir, "x.caibx")
	args := []string{"make", "-j1", "--compression-level=22", "--progress=json", index, image}
	j := start(t, nil, args...)
	j.stderr.await(t, `"event":"start"`)
	if err := os.Truncate(image, mib); err != nil {
		t.Fatal(err)
	}
	checkFailed(t, j.wait(t), failed, "shrank", args)
	wantOnly(t, dir, "default.caroots", "default.castr")
	wantOnly(t, filepath.Join(dir, "default.castr"))
}
