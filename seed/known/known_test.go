package known

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cairn/blob"
)

var content = Content{Size: 5000, Filesystem: "ext4 1234", Params: blob.Params{Min: 10, Avg: 100, Max: 1000}}

func index(t *testing.T, size int64) *blob.Index {
	t.Helper()
	b, err := blob.NewBuilder(content.Algorithm, content.Params)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Add(size, blob.Digest{1}); err != nil {
		t.Fatal(err)
	}
	return b.Index()
}

func mustRemember(t *testing.T, d Dir, device string, c Content, x *blob.Index) {
	t.Helper()
	if err := d.Remember(device, c, x); err != nil {
		t.Fatal(err)
	}
}

func indexPath(d Dir, device string, c Content) string {
	return filepath.Join(string(d), indexName(device, c))
}

func TestRecall(t *testing.T) {
	d := Dir(filepath.Join(t.TempDir(), "state [x]*"))
	if got := d.Recall("sda1", content); got != nil {
		t.Errorf("Recall = %v before anything was remembered", got)
	}
	x := index(t, 700)
	mustRemember(t, d, "sda1", content, x)
	if got := d.Recall("sda1", content); got == nil || got.Digest() != x.Digest() {
		t.Errorf("Recall = %v, want what was remembered", got)
	}
	other := content
	other.Filesystem = "ext4 1235"
	for name, got := range map[string]*blob.Index{"device": d.Recall("sda2", content), "content": d.Recall("sda1", other)} {
		if got != nil {
			t.Errorf("Recall of another %s = %v, want nil", name, got)
		}
	}
	mustRemember(t, d, "sda1", other, x)
	if d.Recall("sda1", content) != nil || d.Recall("sda1", other) == nil {
		t.Error("the newer content did not take the place of the older one")
	}
}

// TestRecallDistrusts: a damaged or unsuitable file counts as none.
func TestRecallDistrusts(t *testing.T) {
	d := Dir(t.TempDir())
	for name, file := range map[string][]byte{"empty": nil, "garbage": []byte("garbage"), "cut": index(t, 700).Encode()[:100]} {
		if err := os.WriteFile(indexPath(d, "sda1", content), file, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := d.Recall("sda1", content); got != nil {
			t.Errorf("%s: Recall = %v, want nil", name, got)
		}
	}
	small := content
	small.Size = 600
	mustRemember(t, d, "sda1", small, index(t, 700))
	if got := d.Recall("sda1", small); got != nil {
		t.Errorf("Recall of an index larger than the device = %v, want nil", got)
	}
}

func TestPrune(t *testing.T) {
	d := Dir(t.TempDir())
	for i := range maxDevices + 5 {
		device := fmt.Sprint(i)
		mustRemember(t, d, device, content, index(t, 700))
		when := time.Now().Add(time.Duration(i-1000) * time.Minute)
		if err := os.Chtimes(indexPath(d, device, content), when, when); err != nil {
			t.Fatal(err)
		}
	}
	mustRemember(t, d, "last", content, index(t, 700))
	files, err := os.ReadDir(string(d))
	if err != nil || len(files) != maxDevices {
		t.Errorf("%d files, %v, want %d", len(files), err, maxDevices)
	}
	if d.Recall("0", content) != nil || d.Recall("last", content) == nil {
		t.Error("the oldest is not the one that was forgotten")
	}
}

func TestWork(t *testing.T) {
	d := Dir(filepath.Join(t.TempDir(), "new"))
	if d.Unfinished("sda1") != nil || d.Finish("sda1") != nil {
		t.Error("there is work before any was begun")
	}
	mustRemember(t, d, "sda1", content, index(t, 700))
	want := Work{"v2.caibx", blob.Digest{2}, "disk#b", time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC)}
	if err := d.Begin("sda1", want); err != nil {
		t.Fatal(err)
	}
	if d.Recall("sda1", content) != nil {
		t.Error("what the device held is remembered although it changes")
	}
	if diff := cmp.Diff(&want, d.Unfinished("sda1")); diff != "" {
		t.Errorf("Unfinished (-want +got):\n%s", diff)
	}
	if err := d.Finish("sda1"); err != nil || d.Unfinished("sda1") != nil {
		t.Errorf("Finish = %v, and the work is there: %v", err, d.Unfinished("sda1"))
	}
}
