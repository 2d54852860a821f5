package local_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"cairn/internal/test/need"
	"cairn/store/local"
)

// TestLinksAreNotFollowed: objects are not written, removed or listed through a link in the place of a directory.
func TestLinksAreNotFollowed(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	b := create(t, dir, local.Options{})
	plant(t, filepath.Join(outside, "x"))
	if err := os.Symlink(outside, filepath.Join(dir, "abcd")); err != nil {
		t.Fatal(err)
	}
	batch := newBatch(t, b)
	write(t, batch, "abcd/batch", "data")
	for what, err := range map[string]error{
		"Write":  b.Write(t.Context(), "abcd/write", []byte("data")),
		"Create": b.Create(t.Context(), "abcd/create", []byte("data")),
		"Commit": batch.Commit(t.Context()),
		"Remove": b.Remove(t.Context(), "abcd/x"),
	} {
		if !errors.Is(err, syscall.ENOTDIR) {
			t.Errorf("%s through a link = %v, want ENOTDIR", what, err)
		}
	}
	for o, err := range b.List(t.Context(), "abcd/") {
		t.Errorf("List through a link yields %v, %v", o, err)
	}
	if err := batch.Close(); err != nil {
		t.Error(err)
	}
	wantFiles(t, outside, "x")
}

// TestExchangedStage: a stage is removed by its handle. A link that takes its name meanwhile leads to nothing.
func TestExchangedStage(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	for _, name := range []string{"lock", "1.tmp", "ready-x", "precious"} {
		plant(t, filepath.Join(outside, name))
	}
	batch := newBatch(t, create(t, dir, local.Options{}))
	write(t, batch, "x", "data")
	stages, err := filepath.Glob(filepath.Join(dir, ".cairn-stage-*"))
	if err != nil || len(stages) != 1 {
		t.Fatalf("the stages are %q, %v", stages, err)
	}
	if err := errors.Join(os.Rename(stages[0], filepath.Join(dir, "moved")), os.Symlink(outside, stages[0])); err != nil {
		t.Fatal(err)
	}
	_ = batch.Close() // the stage's name cannot be removed
	wantFiles(t, outside, "1.tmp", "lock", "precious", "ready-x")
}

// TestPlantedStages: the removal of dead stages removes only files that a stage has, and only from stages of this
// user or the bucket's owner. A FIFO or a link in the place of a lock does no harm.
func TestPlantedStages(t *testing.T) {
	need.Root(t)
	const stranger = 65534
	dir, outside := t.TempDir(), t.TempDir()
	for _, planted := range []string{".cairn-stage-1/lock", ".cairn-stage-1/1.tmp", ".cairn-stage-1/precious",
		".cairn-stage-2/lock", ".cairn-stage-2/1.tmp", ".cairn-stage-3/1.tmp", ".cairn-stage-4/1.tmp", ".cairn-stage-5"} {
		plant(t, filepath.Join(dir, planted))
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(os.Chown(at(".cairn-stage-2"), stranger, stranger), syscall.Mkfifo(at(".cairn-stage-3/lock"), 0o600),
		os.Symlink(filepath.Join(outside, "made"), at(".cairn-stage-4/lock")), syscall.Mkfifo(at(".cairn-stage-6"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := create(t, dir, local.Options{}).Write(t.Context(), "x", nil); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, dir, ".cairn-stage-1/", ".cairn-stage-1/precious", ".cairn-stage-2/", ".cairn-stage-2/1.tmp",
		".cairn-stage-2/lock", ".cairn-stage-4/", ".cairn-stage-4/1.tmp", ".cairn-stage-4/lock", ".cairn-stage-5",
		".cairn-stage-6", "x")
	wantFiles(t, outside)
}

// TestStageNamesNoPath: a file that another user has put into a stage is not published outside the bucket.
func TestStageNamesNoPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	batch := newBatch(t, create(t, dir, local.Options{}))
	write(t, batch, "x", "data")
	stages, err := filepath.Glob(filepath.Join(dir, ".cairn-stage-*"))
	if err != nil || len(stages) != 1 {
		t.Fatalf("the stages are %q, %v", stages, err)
	}
	plant(t, filepath.Join(stages[0], "ready-..%2Fescaped"))
	if batch.Commit(t.Context()) == nil {
		t.Error("Commit published a name with ..")
	}
	if err := batch.Close(); err != nil {
		t.Error(err)
	}
	wantFiles(t, filepath.Dir(dir), "store/", "store/x")
}

// TestListFIFO: a FIFO in the place of a directory does not block a listing.
func TestListFIFO(t *testing.T) {
	dir := t.TempDir()
	b := create(t, dir, local.Options{})
	if err := syscall.Mkfifo(filepath.Join(dir, "abcd"), 0o600); err != nil {
		t.Fatal(err)
	}
	for o, err := range b.List(t.Context(), "abcd/") {
		t.Errorf("List of a FIFO yields %v, %v", o, err)
	}
}
