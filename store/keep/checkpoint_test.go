package keep_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/blob"
	"cairn/store/keep"
)

func TestCheckpoint(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	a, b := keep.NewCheckpoint(dir, keep.VerifyOptions{}, "a", "b"), keep.NewCheckpoint(dir, keep.VerifyOptions{}, "ab", "")
	want := keep.Mark{
		Digest: blob.Digest{7}, Report: keep.VerifyReport{Chunks: 3, Damaged: 1},
		Findings: []keep.Finding{{Kind: keep.Damaged, Name: "x", Fate: keep.Removed, Why: "it is"}},
	}
	if got := a.Load(); got != nil {
		t.Errorf("Load before Save = %+v", got)
	}
	if err := a.Save(want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&want, a.Load()); diff != "" {
		t.Errorf("Load (-saved +loaded):\n%s", diff)
	}
	if b.Load() != nil {
		t.Error("another run's checkpoint was loaded")
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	if err := os.WriteFile(filepath.Join(dir, files[0].Name()), []byte("{damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if a.Load() != nil {
		t.Error("a damaged checkpoint was loaded")
	}
	if a.Remove(); a.Load() != nil {
		t.Error("Load after Remove is something")
	}
	var none keep.Checkpoint
	if err := none.Save(want); err != nil || none.Load() != nil {
		t.Errorf("the zero value kept something: %v", err)
	}
	if err := keep.NewCheckpoint(os.DevNull, keep.VerifyOptions{}).Save(want); err == nil {
		t.Error("Save where no directory can be = nil")
	}
}

// TestCheckpoints: runs that differ in the directory, an option or a store have different
// checkpoints.
func TestCheckpoints(t *testing.T) {
	algorithm, indexes := blob.SHA512_256, []*blob.Index{index(t, 0, 1)}
	seen := map[keep.Checkpoint]bool{}
	for _, dir := range []string{"x", "y"} {
		for _, stores := range [][]string{{"s"}, {"t"}, {"s", "a"}, {"s", "a", "b"}} {
			for _, o := range []keep.VerifyOptions{{}, {Remove: true}, {Algorithm: &algorithm}, {Indexes: indexes}} {
				seen[keep.NewCheckpoint(dir, o, stores...)] = true
			}
		}
	}
	if len(seen) != 2*4*4 {
		t.Errorf("%d checkpoints for %d different runs", len(seen), 2*4*4)
	}
	if o := (keep.VerifyOptions{Indexes: indexes}); !seen[keep.NewCheckpoint("y", o, "t")] {
		t.Error("the same run has another checkpoint")
	}
}
