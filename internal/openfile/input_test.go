package openfile_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"cairn/internal/openfile"
)

// TestInputs: an input with random access is opened as a file, any other as a stream.
func TestInputs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image#1")
	if err := os.WriteFile(path, []byte("image"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString("image"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	for _, location := range []string{path, fmt.Sprint("/dev/fd/", r.Fd())} {
		in, err := openfile.OpenInput(t.Context(), location)
		if err != nil {
			t.Fatal(err)
		}
		from := in.Stream
		if in.File != nil {
			from = io.NewSectionReader(in.File, 0, in.File.Size()) // reads at offsets
		}
		if (in.File == nil) != (location != path) || in.Partition {
			t.Errorf("OpenInput(%s) = %+v", location, in)
		}
		if got, err := io.ReadAll(from); err != nil || string(got) != "image" {
			t.Errorf("%s holds %q, %v", location, got, err)
		}
		in.Close()
	}
	if _, err := openfile.OpenInput(t.Context(), path+"x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("OpenInput of what is not there = %v", err)
	}
}

// TestReaderEnds: a read that waits for its writer ends with the context.
func TestReaderEnds(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close() // ends the copying goroutine
	ctx, cancel := context.WithCancel(t.Context())
	from := openfile.NewReader(ctx, r)
	if _, err := w.WriteString("x"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 1)
	if _, err := io.ReadFull(from, got); err != nil || got[0] != 'x' {
		t.Errorf("read %q, %v", got, err)
	}
	cancel()
	if _, err := from.Read(got); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("Read when the context has ended = %v", err)
	}
}

func TestStandardAndIsStream(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for location, want := range map[string]struct {
		standard string
		stream   bool
	}{
		"-": {"-", true}, "/dev/stdout": {"-", true}, "/dev/stdin": {"/dev/stdin", true}, path: {path, false},
		path + "x": {path + "x", false}, fmt.Sprint("/dev/fd/", f.Fd()): {fmt.Sprint("/dev/fd/", f.Fd()), true},
	} {
		if got := openfile.Standard(location, openfile.Stdout); got != want.standard {
			t.Errorf("Standard(%s, 1) = %s, want %s", location, got, want.standard)
		}
		if got := openfile.IsStream(location); got != want.stream {
			t.Errorf("IsStream(%s) = %v, want %v", location, got, want.stream)
		}
	}
}

// TestNode: Node returns the path that a file was opened by, as long as it names the file.
func TestNode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if got := openfile.Node(f, info); got != path {
		t.Errorf("Node = %s, want %s", got, path)
	}
	if err := errors.Join(os.Remove(path), os.WriteFile(path, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if got := openfile.Node(f, info); got != fmt.Sprint("/proc/self/fd/", f.Fd()) {
		t.Errorf("Node of a file whose path another has = %s", got)
	}
}
