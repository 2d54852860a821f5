package keep_test

import (
	"os"
	"path/filepath"
	"testing"

	"cairn/store/keep"
)

func TestCheckpoint(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	a, b := keep.NewCheckpoint(dir, "a", "b"), keep.NewCheckpoint(dir, "ab", "")
	var got int
	if a.Load(&got) {
		t.Error("Load before Save = true")
	}
	if err := a.Save(7); err != nil {
		t.Fatal(err)
	}
	if !a.Load(&got) || got != 7 {
		t.Errorf("Load = %d, want 7", got)
	}
	if b.Load(&got) {
		t.Error("another job's checkpoint was loaded")
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	if err := os.WriteFile(filepath.Join(dir, files[0].Name()), []byte("{damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if a.Load(&got) {
		t.Error("a damaged checkpoint was loaded")
	}
	if a.Remove(); a.Load(&got) {
		t.Error("Load after Remove = true")
	}
	var none keep.Checkpoint
	if err := none.Save(1); err != nil || none.Load(&got) {
		t.Errorf("the zero value kept something: %v", err)
	}
	if err := keep.NewCheckpoint(os.DevNull).Save(1); err == nil {
		t.Error("Save where no directory can be = nil")
	}
}
