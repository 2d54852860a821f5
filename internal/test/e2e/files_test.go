package e2e

import (
	"bytes"
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/blob"
)

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// writeFile creates a file in a directory and returns its path.
func writeFile(t testing.TB, dir, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func mkdir(t testing.TB, path string) string {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// fileSize returns the size of a file or device in bytes.
func fileSize(t testing.TB, path string) int64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// sum returns the SHA-256 of the n bytes at off of a file or device.
func sum(t testing.TB, path string, off, n int64) [sha256.Size]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if got, err := io.Copy(h, io.NewSectionReader(f, off, n)); err != nil || got != n {
		t.Fatalf("reading %d bytes at %d of %s: %d, %v", n, off, path, got, err)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// wantSame compares two files.
func wantSame(t testing.TB, got, want string) {
	t.Helper()
	n, m := fileSize(t, got), fileSize(t, want)
	if n != m || sum(t, got, 0, n) != sum(t, want, 0, m) {
		t.Errorf("%s (%d bytes) and %s (%d bytes) differ", got, n, want, m)
	}
}

// wantCopy checks that got is an image as NBD clients see it, with zeros that fill the last sector.
func wantCopy(t testing.TB, got, image string) {
	t.Helper()
	n, m := fileSize(t, got), fileSize(t, image)
	if n%512 != 0 || n < m || n >= m+1024 || sum(t, got, 0, m) != sum(t, image, 0, m) {
		t.Errorf("%s (%d bytes) is no copy of %s (%d bytes)", got, n, image, m)
		return
	}
	wantZeros(t, got, m, n-m)
}

// wantNone checks that path does not exist.
func wantNone(t testing.TB, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("%s is there (%v), want nothing", path, err)
	}
}

// wantOnly checks that a directory holds only these names.
func wantOnly(t testing.TB, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	allowed := " " + strings.Join(names, " ") + " "
	for _, e := range entries {
		if !strings.Contains(allowed, " "+e.Name()+" ") {
			t.Errorf("%s holds %s, want only%s", dir, e.Name(), allowed)
		}
	}
}

func readIndex(t testing.TB, path string) *blob.Index {
	t.Helper()
	x, err := blob.Decode(bytes.NewReader(readFile(t, path)))
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return x
}

// chunkFile returns the path of a chunk in a store.
func chunkFile(store string, d blob.Digest) string {
	name := d.String()
	return filepath.Join(store, name[:4], name+".cacnk")
}
