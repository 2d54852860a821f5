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

// TestStoreVerifyGoesOn continues an interrupted run: it prints the earlier findings again, and the state is removed at
// the end.
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
	const n = 4200 // more than one stretch
	for i := range n {
		data := []byte{byte(i), byte(i >> 8)}
		d := blob.SHA256.Sum(data)
		if d[0] == 0 {
			data[0]++ // damaged, and among the first to be read
		}
		if err := batch.Write(t.Context(), store.ObjectName(d, false), data); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(batch.Commit(t.Context()), batch.Close()); err != nil {
		t.Fatal(err)
	}
	f := storeVerifyFlags{common: common{jobs: 2, progress: progressNone}, state: filepath.Join(dir, "state"), stateGiven: true}
	whole := verifiedStdout(t, t.Context(), f, b)
	if len(whole) == 0 {
		t.Fatal("nothing is damaged")
	}
	if files, _ := os.ReadDir(f.state); len(files) != 0 {
		t.Errorf("the state of a finished run is still there: %v", files)
	}

	interruptVerify(t, f, b)
	if files, _ := os.ReadDir(f.state); len(files) != 1 {
		t.Fatalf("an interrupted run remembers %v", files)
	}
	var messages bytes.Buffer
	stderr = &messages
	defer func() { stderr = os.Stderr }()
	if got := verifiedStdout(t, t.Context(), f, b); !bytes.Equal(got, whole) {
		t.Errorf("in two parts it finds\n%s, want\n%s", got, whole)
	}
	if !strings.Contains(messages.String(), "going on behind 0") || !strings.Contains(messages.String(), "verified 4,200 chunks") {
		t.Errorf("it says\n%s", messages.String())
	}

	interruptVerify(t, f, b)
	messages.Reset()
	f.restart = true
	if got := verifiedStdout(t, t.Context(), f, b); !bytes.Equal(got, whole) || strings.Contains(messages.String(), "going on") {
		t.Errorf("with --restart it finds\n%s and says\n%s", got, messages.String())
	}
}

// verifiedStdout returns the output of a run on a damaged store.
func verifiedStdout(t *testing.T, ctx context.Context, f storeVerifyFlags, b *local.Bucket) []byte {
	t.Helper()
	var stdout bytes.Buffer
	if err := runStoreVerify(ctx, &stdout, f, locate.Path(b.String())); !hasType[damagedError](err) {
		t.Fatalf("store verify = %v", err)
	}
	return stdout.Bytes()
}

// interruptVerify runs a verify up to its first mark.
func interruptVerify(t *testing.T, f storeVerifyFlags, b *local.Bucket) {
	t.Helper()
	stop := errors.New("stop")
	kept := f.newCheckpoint(locate.Path(b.String()), keep.VerifyOptions{})
	_, err := keep.Verify(t.Context(), b, keep.VerifyOptions{
		Done: func(m keep.Mark) error { return errors.Join(kept.Save(m), stop) },
	})
	if !errors.Is(err, stop) {
		t.Fatalf("Verify = %v", err)
	}
}
