package openfile_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"cairn/internal/openfile"
)

// TestWriteFile replaces a file, and writes to a pipe that is open in this process.
func TestWriteFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	for _, data := range []string{"first", "second one", ""} {
		if err := openfile.CheckOutput(path); err != nil {
			t.Fatal(err)
		}
		if lost, err := openfile.WriteFile(t.Context(), path, []byte(data)); lost != nil || err != nil {
			t.Fatal(lost, err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != data {
			t.Errorf("the file holds %q, %v; want %q", got, err, data)
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	pipe := fmt.Sprintf("/dev/fd/%d", w.Fd())
	if err := openfile.CheckOutput(pipe); err != nil {
		t.Fatal(err)
	}
	if lost, err := openfile.WriteFile(t.Context(), pipe, []byte("data")); lost != nil || err != nil {
		t.Fatal(lost, err)
	}
	got := make([]byte, 4)
	if _, err := io.ReadFull(r, got); err != nil || string(got) != "data" {
		t.Errorf("the pipe has %q, %v", got, err)
	}
	w.Close()
}

// TestWriteFileFails: what WriteFile cannot write, CheckOutput finds before, and nothing is left.
func TestWriteFileFails(t *testing.T) {
	dir := t.TempDir()
	absent := filepath.Join(dir, "absent", "file")
	if err := openfile.CheckOutput(absent); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("CheckOutput(%s) = %v", absent, err)
	}
	if _, err := openfile.WriteFile(t.Context(), absent, []byte("data")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("WriteFile(%s) = %v", absent, err)
	}
	if err := openfile.CheckOutput(dir); err == nil {
		t.Error("CheckOutput takes a directory for a file")
	}
	if _, err := openfile.WriteFile(t.Context(), dir, []byte("data")); err == nil {
		t.Error("WriteFile writes to a directory")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("it leaves %v, %v", left, err)
	}
}
