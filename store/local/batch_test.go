package local

import (
	"os"
	"testing"
)

// TestFailedFlushIsNotForgotten: after a failed flush every Commit fails, although the kernel
// reports lost writes only once.
func TestFailedFlushIsNotForgotten(t *testing.T) {
	b, err := Create(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	opened, err := b.NewBatch()
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	if err := opened.Write(t.Context(), "x", []byte("data")); err != nil {
		t.Fatal(err)
	}
	stage := opened.(*batch).stage
	good := stage.lock
	stage.lock = closedFile(t)
	if opened.Commit(t.Context()) == nil {
		t.Fatal("a flush of no file succeeded")
	}
	stage.lock = good
	if opened.Commit(t.Context()) == nil {
		t.Error("Commit after a flush that failed = nil")
	}
}

func closedFile(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	return f
}
