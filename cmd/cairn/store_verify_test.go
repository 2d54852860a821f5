package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/blob"
	"cairn/store"
	"cairn/store/keep"
	"cairn/store/local"
	"cairn/store/locate"
)

// TestStoreVerifyGoesOn: a run that was interrupted is gone on with, its findings come again, and at the end
// nothing is remembered.
func TestStoreVerifyGoesOn(t *testing.T) {
	dir := t.TempDir()
	b, err := local.Create(filepath.Join(dir, "store"), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	batch, err := b.NewBatch()
	if err != nil {
		t.Fatal(err)
	}
	const n = 4200 // more than are listed in one go
	for i := range n {
		data := []byte{byte(i), byte(i >> 8)}
		d := blob.SHA256.Sum(data)
		if d[0] == 0 {
			data[0]++ // damaged, and among the first to be looked at
		}
		if err := batch.Write(t.Context(), store.ObjectName(d, false), data); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(batch.Commit(t.Context()), batch.Close()); err != nil {
		t.Fatal(err)
	}
	f := storeVerifyFlags{common: common{jobs: 2, progress: progressNone}, state: filepath.Join(dir, "state")}
	whole := verifiedStdout(t, t.Context(), f, b)
	if len(whole) == 0 {
		t.Fatal("nothing is damaged")
	}
	if files, _ := os.ReadDir(f.state); len(files) != 0 {
		t.Errorf("what a finished run remembered is still there: %v", files)
	}

	interruptedIn(t, f, b)
	if files, _ := os.ReadDir(f.state); len(files) != 1 {
		t.Fatalf("an interrupted run remembers %v", files)
	}
	var told bytes.Buffer
	stderr = &told
	defer func() { stderr = os.Stderr }()
	if got := verifiedStdout(t, t.Context(), f, b); !bytes.Equal(got, whole) {
		t.Errorf("in two parts it finds\n%s, want\n%s", got, whole)
	}
	if !strings.Contains(told.String(), "going on behind 0") || !strings.Contains(told.String(), "verified 4,200 chunks") {
		t.Errorf("it says\n%s", told.String())
	}

	interruptedIn(t, f, b)
	told.Reset()
	f.restart = true
	if got := verifiedStdout(t, t.Context(), f, b); !bytes.Equal(got, whole) || strings.Contains(told.String(), "going on") {
		t.Errorf("with --restart it finds\n%s and says\n%s", got, told.String())
	}
}

// verifiedStdout is what a run prints of a store that is not whole.
func verifiedStdout(t *testing.T, ctx context.Context, f storeVerifyFlags, b *local.Bucket) []byte {
	t.Helper()
	var stdout bytes.Buffer
	if err := runStoreVerify(ctx, &stdout, f, false, locate.Path(b.String())); !is[damagedError](err) {
		t.Fatalf("store verify = %v", err)
	}
	return stdout.Bytes()
}

// interruptedIn does what a run does until the first mark.
func interruptedIn(t *testing.T, f storeVerifyFlags, b *local.Bucket) {
	t.Helper()
	stop := errors.New("stop")
	kept := f.checkpoint(locate.Path(b.String()), keep.VerifyOptions{})
	_, err := keep.Verify(t.Context(), b, keep.VerifyOptions{
		Done: func(m keep.Mark) error { return errors.Join(kept.Save(m), stop) },
	})
	if !errors.Is(err, stop) {
		t.Fatalf("Verify = %v", err)
	}
}
