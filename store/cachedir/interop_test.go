package cachedir

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cairn/blob"
	"cairn/internal/test/need"
	"cairn/store"
	"cairn/store/local"
)

func run(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.Command(need.Tool(t, args[0]), args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// TestOthersUseTheCache: casync and desync extract from the cache and maintain it as a store. A
// chunk that they remove is a miss.
func TestOthersUseTheCache(t *testing.T) {
	path, dir := filepath.Join(t.TempDir(), "cache"), t.TempDir()
	samples := []sample{newSample(1, 50*kib), newSample(2, 200*kib), newSample(3, 20*kib)}
	stray := newSample(4, 30*kib)
	g, far := through(t, open(t, path, 0), noFailure(t), append(samples, stray)...)
	b, err := blob.NewBuilder(blob.SHA512_256, blob.Params{Min: 16 << 10, Avg: 64 << 10, Max: 256 << 10})
	if err != nil {
		t.Fatal(err)
	}
	var image []byte
	for _, s := range samples {
		wantFrom(t, g, s)
		image = append(image, s.data...)
		if _, err := b.Add(int64(len(s.data)), s.digest); err != nil {
			t.Fatal(err)
		}
	}
	wantFrom(t, g, stray)
	index, out := filepath.Join(dir, "x.caibx"), filepath.Join(dir, "out")
	if err := os.WriteFile(index, b.Index().Encode(), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, "casync", "--store="+path, "--seed-output=no", "extract", index, out+"-casync")
	run(t, "desync", "extract", "-s", path, index, out+"-desync")
	for _, tool := range []string{"-casync", "-desync"} {
		if got, err := os.ReadFile(out + tool); err != nil || !bytes.Equal(got, image) {
			t.Errorf("%s extracts %d bytes, %v", tool, len(got), err)
		}
	}
	bucket, err := local.Open(path, local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	listed := 0
	for o, err := range bucket.List(t.Context(), "") {
		_, _, ok := store.ChunkObject(o.Name)
		if listed++; err != nil || !ok {
			t.Errorf("listed as a store it has %q, %v", o.Name, err)
		}
	}
	if listed != len(samples)+1 {
		t.Errorf("listed as a store it has %d objects", listed)
	}
	run(t, "desync", "verify", "-s", path)
	for _, gc := range [][]string{
		{"casync", "--store=" + path, "gc", index},
		{"desync", "prune", "--yes", "-s", path, index},
	} {
		*far = 0
		run(t, gc...)
		for _, s := range samples {
			wantFrom(t, g, s)
		}
		if *far != 0 {
			t.Errorf("after %s the cache has lost what is in the index", gc[0])
		}
		if wantFrom(t, g, stray); *far != 1 {
			t.Errorf("after %s the cache has what is in no index", gc[0])
		}
	}
	if _, err := os.Stat(filepath.Join(path, controlName, "state")); err != nil {
		t.Error(err)
	}
}

// TestOthersWriteToTheCache: chunks that desync writes are read, and are included in the next
// count.
func TestOthersWriteToTheCache(t *testing.T) {
	path, other := filepath.Join(t.TempDir(), "cache"), filepath.Join(t.TempDir(), "store")
	s := newSample(1, 100*kib)
	d := open(t, path, 0)
	write(t, d, newSample(2, kib))
	from, _ := through(t, open(t, other, 0), noFailure(t), s)
	wantFrom(t, from, s)
	b, err := blob.NewBuilder(blob.SHA512_256, blob.Params{Min: 16 << 10, Avg: 64 << 10, Max: 256 << 10})
	if err == nil {
		_, err = b.Add(int64(len(s.data)), s.digest)
	}
	index := filepath.Join(t.TempDir(), "x.caibx")
	if err := errors.Join(err, os.WriteFile(index, b.Index().Encode(), 0o644)); err != nil {
		t.Fatal(err)
	}
	run(t, "desync", "cache", "-s", other, "-c", path, index)
	wantFrom(t, store.NewChunks(d, blob.SHA512_256), s)
	d.recount(t)
	if got, want := tallyOf(t, path).used, du(t, path); got != want {
		t.Errorf("%d bytes are counted, want %d", got, want)
	}
}
