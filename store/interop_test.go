package store_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/blob"
	"cairn/internal/test/need"
	"cairn/store"
	"cairn/store/local"
	"cairn/store/storetest"
)

// image returns a few chunks of each kind, in order.
func image() []sample {
	samples := []sample{
		newSample(1, 256<<10), newSample(2, 16<<10), newSample(3, 100_001),
		{data: storetest.Bytes(4, 200_000)},        // incompressible
		{data: make([]byte, 256<<10)},              // zeros
		{data: bytes.Repeat([]byte("ab"), 60_000)}, // a single block
		{data: []byte("the end")},
	}
	for i := range samples {
		samples[i].digest = blob.SHA512_256.Sum(samples[i].data)
	}
	return samples
}

func imageBytes(samples []sample) []byte {
	var all []byte
	for _, s := range samples {
		all = append(all, s.data...)
	}
	return all
}

func indexOf(t *testing.T, samples []sample) *blob.Index {
	t.Helper()
	b, err := blob.NewBuilder(blob.SHA512_256, blob.Params{Min: 16 << 10, Avg: 64 << 10, Max: 256 << 10})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range samples {
		if _, err := b.Add(int64(len(s.data)), s.digest); err != nil {
			t.Fatal(err)
		}
	}
	return b.Index()
}

// ours returns an image's index and store as cairn writes them.
type ours struct {
	index, store string
	bucket       *local.Bucket
	samples      []sample
}

func writeOurs(t *testing.T, o store.WriterOptions) ours {
	t.Helper()
	dir := t.TempDir()
	p := ours{filepath.Join(dir, "x.caibx"), filepath.Join(dir, "default.castr"), nil, image()}
	bucket, err := local.Create(p.store, local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p.bucket = bucket
	w := newWriter(t, bucket, o)
	for _, s := range p.samples {
		if _, err := w.Put(t.Context(), s.digest, s.data); err != nil {
			t.Fatal(err)
		}
	}
	err = errors.Join(w.Commit(t.Context()), os.WriteFile(p.index, indexOf(t, p.samples).Encode(), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(need.Tool(t, args[0]), args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func wantImage(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s has %d bytes, %v; want the image of %d", path, len(got), err, len(want))
	}
}

func TestOthersReadOurs(t *testing.T) {
	for name, o := range map[string]store.WriterOptions{
		"zstd": {}, "zstd 1": {Level: 1}, "zstd 19": {Level: 19}, "none": {Compression: store.None},
	} {
		p := writeOurs(t, o)
		want, out := imageBytes(p.samples), filepath.Join(t.TempDir(), "out")
		t.Run("casync "+name, func(t *testing.T) {
			run(t, "casync", "--store="+p.store, "--seed-output=no", "extract", p.index, out+"-casync")
			wantImage(t, out+"-casync", want)
		})
		if o.Compression == store.None {
			continue // desync reads plain stores only if its configuration allows it
		}
		t.Run("desync "+name, func(t *testing.T) {
			run(t, "desync", "extract", "-s", p.store, p.index, out+"-desync")
			wantImage(t, out+"-desync", want)
		})
	}
}

func TestOthersReadOursOverHTTP(t *testing.T) {
	p := writeOurs(t, store.WriterOptions{})
	url := storetest.Nginx(t, p.store)
	out := filepath.Join(t.TempDir(), "out")
	run(t, "casync", "--store="+url, "extract", p.index, out+"-casync")
	run(t, "desync", "extract", "-s", url, p.index, out+"-desync")
	wantImage(t, out+"-casync", imageBytes(p.samples))
	wantImage(t, out+"-desync", imageBytes(p.samples))
}

// TestOthersKeepOurs lets casync and desync maintain a store that is being written at the same
// time.
func TestOthersKeepOurs(t *testing.T) {
	p := writeOurs(t, store.WriterOptions{})
	stray := newSample(99, 50_000)
	w := newWriter(t, p.bucket, store.WriterOptions{})
	for i := range 3 {
		if _, err := w.Put(t.Context(), stray.digest, stray.data); err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			continue // the last of them stays in the stage for now
		}
		if err := w.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "desync", "verify", "-s", p.store)
	run(t, "desync", "verify", "-s", p.store, "-r")
	stray.wantFrom(t, chunksOf(p.bucket))
	run(t, "casync", "--store="+p.store, "gc", p.index)
	if err := stray.get(t, chunksOf(p.bucket)); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("casync gc left the chunk that no index has: %v", err)
	}
	run(t, "desync", "prune", "--yes", "-s", p.store, p.index)
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, s := range append(slices.Clone(p.samples), stray) {
		s.wantFrom(t, chunksOf(p.bucket))
	}
}

func TestWeReadOthers(t *testing.T) {
	image := imageBytes(image())
	for name, tool := range map[string][]string{
		"casync zstd":   {"casync", "--compression=zstd", "--store=STORE", "make", "INDEX", "IMAGE"},
		"casync sha256": {"casync", "--digest=sha256", "--compression=zstd", "--store=STORE", "make", "INDEX", "IMAGE"},
		"casync xz":     {"casync", "--compression=xz", "--store=STORE", "make", "INDEX", "IMAGE"},
		"casync gzip":   {"casync", "--compression=gzip", "--store=STORE", "make", "INDEX", "IMAGE"},
		"desync":        {"desync", "make", "-s", "STORE", "INDEX", "IMAGE"},
	} {
		t.Run(name, func(t *testing.T) {
			x, r := makeWith(t, tool, image)
			got := make([]byte, x.Size())
			chunks := store.NewChunks(r, x.Algorithm())
			for _, c := range x.All() {
				if err := store.GetOne(t.Context(), chunks, c.Digest, got[c.Offset:c.End()]); err != nil {
					t.Fatalf("Get: %v", err)
				}
			}
			if !bytes.Equal(got, image) {
				t.Error("another image was read")
			}
		})
	}
}

// makeWith lets another tool cut an image into a store.
func makeWith(t *testing.T, tool []string, image []byte) (*blob.Index, store.Reader) {
	t.Helper()
	dir := t.TempDir()
	paths := strings.NewReplacer("STORE", filepath.Join(dir, "default.castr"),
		"INDEX", filepath.Join(dir, "x.caibx"), "IMAGE", filepath.Join(dir, "image"))
	err := errors.Join(os.WriteFile(filepath.Join(dir, "image"), image, 0o644),
		os.Mkdir(filepath.Join(dir, "default.castr"), 0o755))
	if err != nil {
		t.Fatal(err)
	}
	args := make([]string, len(tool))
	for i, arg := range tool {
		args[i] = paths.Replace(arg)
	}
	run(t, args...)
	f, err := os.Open(filepath.Join(dir, "x.caibx"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	x, err := blob.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	r, err := local.Open(filepath.Join(dir, "default.castr"), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return x, r
}
