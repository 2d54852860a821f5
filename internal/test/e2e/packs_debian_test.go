package e2e

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"cairn/blob"
	"cairn/internal/test/boottrace"
	"cairn/internal/test/need"
	"cairn/store"
	"cairn/store/local"
	packs "cairn/store/pack"
)

// TestPacksOfDebian measures what devices download of chunks and of packs, with two Debian releases. docs/scale.md has
// the figures. An update from packs downloads hardly more bytes than one from chunks, and without ranges hardly more
// packs than needed for them.
func TestPacksOfDebian(t *testing.T) {
	if os.Getenv("CAIRN_LONG") == "" {
		t.Skip("CAIRN_LONG is not set")
	}
	need.Tool(t, "nginx")
	r := publishDebianShapes(t)
	update := []string{"--seed", r.a + "=" + r.index("a")}
	chunks := r.measureDownload(t, "update from chunks", nil, update)
	r.measureDownload(t, "all from chunks", nil, nil)
	for _, name := range []string{"a", "b"} {
		at := filepath.Join(r.dir, "default.castr")
		cairn(t, "store", "copy", "--layout", "packs", at, at, r.index(name))
	}
	r.removeChunks(t)
	r.logPacks(t)
	for name, directives := range map[string][]string{"packs": nil, "packs without ranges": {"max_ranges 0;"}} {
		got := r.measureDownload(t, "update from "+name, directives, update)
		if got.bytes > chunks.bytes*102/100 {
			t.Errorf("an update from %s takes %d bytes, want at most 2 %% more than the %d of chunks", name, got.bytes, chunks.bytes)
		}
		if most := int(got.bytes/packs.DefaultSize) + 1 + 4; directives != nil && got.chunks > most {
			t.Errorf("an update from %s takes %d downloads, want at most %d", name, got.chunks, most)
		}
		r.measureDownload(t, "all from "+name, directives, nil)
	}
}

// measureDownload assembles b from an nginx, and returns and logs what the nginx sent, without the index.
func (r release) measureDownload(t *testing.T, name string, directives, args []string) traffic {
	t.Helper()
	s := newPackServer(t, r.dir, directives...)
	out := filepath.Join(t.TempDir(), "out")
	cairn(t, append([]string{"assemble", s.url + "/b.caibx", out}, args...)...)
	sent := s.sentFiles(t)
	wantSame(t, out, r.b)
	t.Logf("%s: %d requests, %d bytes", name, sent.chunks, sent.bytes)
	return sent
}

// logPacks logs what the packs of both releases take.
func (r release) logPacks(t *testing.T) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(r.dir, "default.capack", "*.capk"))
	if err != nil {
		t.Fatal(err)
	}
	var size int64
	for _, name := range files {
		size += fileSize(t, name)
	}
	for _, name := range []string{"a", "b"} {
		x := readIndex(t, r.index(name))
		m, err := packs.DecodeMap(mustOpen(t, r.mapFile(t, name)), x)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d packs, a map of %d bytes", name, len(m.Packs()), fileSize(t, r.mapFile(t, name)))
	}
	t.Logf("%d packs of %d bytes", len(files), size)
}

// publishDebianShapes publishes two images whose chunks have the sizes of those of the recorded Debian releases, about
// the same sizes in the store, and other bytes.
func publishDebianShapes(t *testing.T) release {
	t.Helper()
	dir := t.TempDir()
	r := release{pair{"debian", filepath.Join(dir, "a"), filepath.Join(dir, "b")}, dir}
	bucket, err := local.Create(filepath.Join(dir, "default.castr"), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	to, err := store.NewWriter(bucket, store.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		publishShape(t, to, filepath.Join(dir, name), filepath.Join("..", "boottrace", "testdata", "debian-"+name+".shape.gz"))
	}
	if err := to.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	return r
}

// publishShape writes the image path with its index, and its chunks to a store.
func publishShape(t *testing.T, to *store.Writer, path, recorded string) {
	t.Helper()
	shape, err := boottrace.DecodeShape(mustOpen(t, recorded))
	if err != nil {
		t.Fatal(err)
	}
	const most = 256 << 10
	builder, err := blob.NewBuilder(blob.SHA512_256, blob.Params{Min: most / 16, Avg: most / 4, Max: most})
	if err != nil {
		t.Fatal(err)
	}
	image, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	var end int64
	written := map[blob.Digest]bool{}
	for _, c := range shape {
		data := make([]byte, c.Size)
		if c.ID >= 0 {
			fillRandom(data, c)
		}
		d := blob.SHA512_256.Sum(data)
		if _, err := builder.Add(c.Size, d); err != nil {
			t.Fatal(err)
		}
		if !written[d] {
			if _, err := to.Put(t.Context(), d, data); err != nil {
				t.Fatal(err)
			}
			written[d] = true
		}
		if c.ID >= 0 {
			if _, err := image.WriteAt(data, end); err != nil {
				t.Fatal(err)
			}
		}
		end += c.Size
	}
	if err := image.Truncate(end); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Dir(path), filepath.Base(path)+".caibx", builder.Index().Encode())
}

// fillRandom gives a chunk bytes of its own, of which so many are random that it takes its recorded size in a store.
func fillRandom(data []byte, c boottrace.Chunk) {
	const frame = 180 // bytes besides the random ones
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], uint64(c.ID))
	_, _ = rand.NewChaCha8(seed).Read(data[:max(min(c.Size, c.Stored-frame), 8)])
}

func mustOpen(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}
