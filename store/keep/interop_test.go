package keep_test

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/blob"
	"cairn/internal/test/need"
	"cairn/store"
	"cairn/store/keep"
	"cairn/store/local"
	"cairn/testimages"
)

func run(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(need.Tool(t, args[0]), args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// ofCasync is an image with the index and store that casync makes of it, in a new directory.
func ofCasync(t *testing.T) (dir string, image []byte, b *local.Bucket) {
	t.Helper()
	dir = t.TempDir()
	image = slices.Concat(testimages.Random(1, 3<<20), make([]byte, 1<<20), bytes.Repeat([]byte("some text "), 100_000))
	if err := os.WriteFile(filepath.Join(dir, "image"), image, 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, "casync", "make", "--store="+filepath.Join(dir, "theirs.castr"), filepath.Join(dir, "x.caibx"), filepath.Join(dir, "image"))
	b, err := local.Open(filepath.Join(dir, "theirs.castr"), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return dir, image, b
}

// TestOthersReadCopies: casync and desync read copies of a casync store, whole and by index.
func TestOthersReadCopies(t *testing.T) {
	need.Tool(t, "desync")
	dir, image, from := ofCasync(t)
	index := filepath.Join(dir, "x.caibx")
	file, err := os.Open(index)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	x, err := blob.Decode(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, indexes := range map[string][]*blob.Index{"all": nil, "by-index": {x}} {
		to, err := local.Create(filepath.Join(dir, name), local.Options{})
		if err != nil {
			t.Fatal(err)
		}
		report, err := keep.Copy(t.Context(), from, to, keep.CopyOptions{Indexes: indexes, Workers: 2})
		if err != nil || report.Bad() > 0 || report.Copied.Chunks == 0 {
			t.Fatalf("Copy = %+v, %v", report, err)
		}
		out := filepath.Join(dir, name+".out")
		run(t, "casync", "extract", "--store="+to.String(), "--seed-output=no", index, out+"-casync")
		run(t, "desync", "extract", "-s", to.String(), index, out+"-desync")
		for _, by := range []string{"-casync", "-desync"} {
			if got, err := os.ReadFile(out + by); err != nil || !bytes.Equal(got, image) {
				t.Errorf("%s%s: %d bytes, %v, want the image", name, by, len(got), err)
			}
		}
	}
}

// TestDesyncAgrees: desync finds the same damaged chunks in a store, and none after the repair.
func TestDesyncAgrees(t *testing.T) {
	need.Tool(t, "desync")
	_, _, b := ofCasync(t)
	good, err := local.Create(t.TempDir(), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keep.Copy(t.Context(), b, good, keep.CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	n := 0
	for o := range b.List(t.Context(), "") {
		data := read(t, b, o.Name)
		switch n++; n {
		case 3:
			data[len(data)-7] ^= 4
		case 5:
			data = nil
		case 8:
			data = data[:len(data)/2]
		case 11:
			data = read(t, b, store.ObjectName(digestIn(t, b, o.Name), true))
		default:
			continue
		}
		write(t, b, o.Name, data)
	}
	found := map[string]bool{}
	report, err := keep.Verify(t.Context(), b, keep.VerifyOptions{Found: func(f keep.Finding) {
		d, _, _ := store.ChunkObject(f.Name)
		found[d.String()] = true
	}})
	if err != nil || report.Bad() != 4 {
		t.Fatalf("Verify = %+v, %v, want 4 bad chunks", report, err)
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(found)), desyncFinds(t, b.String())); diff != "" {
		t.Errorf("bad chunks (-ours +desync's):\n%s", diff)
	}
	report, err = keep.Verify(t.Context(), b, keep.VerifyOptions{Bucket: b, Repair: []store.Reader{good}})
	if err != nil || report.Repaired != 4 {
		t.Fatalf("repairing Verify = %+v, %v", report, err)
	}
	if left := desyncFinds(t, b.String()); len(left) > 0 {
		t.Errorf("desync finds %q damaged after the repair", left)
	}
}

// digestIn returns the digest of a compressed chunk in a store, other than the one with the given
// name.
func digestIn(t *testing.T, b *local.Bucket, name string) blob.Digest {
	t.Helper()
	for o := range b.List(t.Context(), "") {
		if d, packed, ok := store.ChunkObject(o.Name); ok && packed && o.Name != name && o.Size > 0 {
			return d
		}
	}
	t.Fatal("there is no other chunk")
	return blob.Digest{}
}

// desyncFinds returns the chunks that desync reports. desync's exit status is 0 all the same.
func desyncFinds(t *testing.T, dir string) []string {
	t.Helper()
	out, err := exec.Command(need.Tool(t, "desync"), "verify", "-s", dir).CombinedOutput()
	if err != nil { // otherwise each line begins with the chunk's digest
		t.Fatalf("desync verify: %v\n%s", err, out)
	}
	found := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^[^0-9]*([0-9a-f]{64})`).FindAllStringSubmatch(string(out), -1) {
		found[m[1]] = true
	}
	return slices.Sorted(maps.Keys(found))
}
