package imagecache

import (
	"bytes"
	"crypto/sha256"
	"os"
	"path/filepath"
	"testing"
)

// TestRecall checks that later processes find the last index of a location while its image is cached and the index is
// valid.
func TestRecall(t *testing.T) {
	r := newRig(t, mixed())
	here, elsewhere := sha256.Sum256([]byte("https://host/x.caibx?key=SECRET")), sha256.Sum256([]byte("https://host/y.caibx"))
	want := func(when string, known bool) {
		t.Helper()
		x := r.dir.Recall(here)
		if (x != nil) != known || known && x.Digest() != r.x.Digest() {
			t.Errorf("%s: Recall = %v, want an index: %v", when, x, known)
		}
		if r.dir.Recall(elsewhere) != nil {
			t.Errorf("%s: Recall of another location returns an index", when)
		}
	}
	reopen := func() {
		if err := r.dir.Close(); err != nil {
			t.Fatal(err)
		}
		r.openCache(Options{})
	}
	want("new", false)
	for range 2 {
		if err := r.dir.Remember(here, r.x); err != nil {
			t.Fatal(err)
		}
	}
	want("remembered", true)
	reopen()
	want("reopened", true)
	r.changeFile(indexName, flip)
	want("the index is damaged", false)
	reopen() // this writes the index again
	want("the index is written again", true)
	record := filepath.Join(r.path, locationsName, "*")
	files, err := filepath.Glob(record)
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	text, err := os.ReadFile(files[0])
	if err != nil || bytes.Contains(text, []byte("SECRET")) {
		t.Errorf("%s holds %q, %v", files[0], text, err)
	}
	for _, bad := range []string{"", "..\n", r.x.Digest().String()[:20] + "\n"} {
		if err := os.WriteFile(files[0], []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		want("the record is damaged", false)
	}
	if err := r.dir.Remember(here, r.x); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(r.file.Path()); err != nil {
		t.Fatal(err)
	}
	want("the image is evicted", false)
	if dir, err := Open(r.path, Options{}); err != nil {
		t.Fatal(err)
	} else if err := dir.Close(); err != nil {
		t.Fatal(err)
	}
	if files, _ := filepath.Glob(record); len(files) != 0 {
		t.Errorf("the records of evicted images remain: %q", files)
	}
}

// TestRemoveStaleRecordsOddPath checks that the name of a directory is not taken for a pattern.
func TestRemoveStaleRecordsOddPath(t *testing.T) {
	cache := filepath.Join(t.TempDir(), "[a*")
	record := filepath.Join(cache, locationsName, "00")
	if err := os.MkdirAll(filepath.Dir(record), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(record, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(cache)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	removeStaleRecords(root)
	if _, err := os.Stat(record); err == nil {
		t.Error("the record of a missing image remains")
	}
}
