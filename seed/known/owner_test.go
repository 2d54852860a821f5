package known

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"cairn/blob"
	"cairn/internal/test/need"
)

// TestOthersRecords: records that another user may have written are not believed, and none is written or removed
// beside them.
func TestOthersRecords(t *testing.T) {
	need.Root(t)
	const stranger = 65534
	d := Dir(t.TempDir())
	mustRemember(t, d, "sda1", content, index(t, 700))
	if err := d.Begin("sda2", Work{Index: "v2.caibx"}); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{string(d), indexPath(d, "sda1", content), filepath.Join(string(d), workName("sda2"))} {
		if err := os.Chown(path, stranger, -1); err != nil {
			t.Fatal(err)
		}
	}
	check := func() {
		t.Helper()
		if d.Recall("sda1", content) != nil || d.Unfinished("sda2") != nil {
			t.Error("the records of another user are believed")
		}
	}
	check()
	if d.Remember("sda1", content, index(t, 800)) == nil || d.Begin("sda1", Work{}) == nil || d.Finish("sda2") == nil {
		t.Error("the directory of another user was changed")
	}
	if err := os.Chown(string(d), 0, -1); err != nil {
		t.Fatal(err)
	}
	check()
}

// TestSpecialFiles: a FIFO in the place of a record blocks nothing and is replaced.
func TestSpecialFiles(t *testing.T) {
	d := Dir(t.TempDir())
	for _, path := range []string{indexPath(d, "sda1", content), filepath.Join(string(d), workName("sda1"))} {
		if err := syscall.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if d.Recall("sda1", content) != nil || d.Unfinished("sda1") != nil {
		t.Error("a FIFO is a record")
	}
	if err := d.Begin("sda1", Work{Digest: blob.Digest{1}}); err != nil {
		t.Fatal(err)
	}
	mustRemember(t, d, "sda1", content, index(t, 700))
	if d.Recall("sda1", content) == nil || d.Unfinished("sda1") == nil {
		t.Error("the FIFO was not replaced")
	}
}
