package openfile_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/internal/openfile"
)

func TestDescriptor(t *testing.T) {
	dir := t.TempDir()
	link := func(name, to string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.Symlink(to, path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	link("loop", "loop")
	for path, want := range map[string]int{
		"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2, "/dev/fd/63": 63, "/proc/self/fd/1": 1, "/dev/../dev/fd/1": 1,
		fmt.Sprintf("/proc/%d/fd/4", os.Getpid()): 4, "/proc/thread-self/fd/1": 1,
		link("out", "/dev/stdout"): 1, link("relative", "out"): 1,
		"-": -1, "./-": -1, "": -1, "/dev/fd": -1, "/dev/fd/x": -1, "/dev/fd/-1": -1, "/proc/1/fd/1": -1,
		filepath.Join(dir, "loop"): -1, filepath.Join(dir, "1"): -1, "https://host/dev/fd/1": -1,
	} {
		if fd, ok := openfile.Descriptor(path); ok != (want >= 0) || ok && fd != want {
			t.Errorf("openfile.Descriptor(%q) = %d, %v; want %d", path, fd, ok, want)
		}
	}
}

// TestOutput: zeros are holes after the end of a file and bytes within it, and Close sets the right size.
func TestOutput(t *testing.T) {
	old := bytes.Repeat([]byte("x"), 100)
	for name, c := range map[string]struct {
		flags int
		start int64
		want  []byte
	}{
		"from the start": {os.O_RDWR, 0, []byte("ab\x00\x00\x00cd")},
		"from within":    {os.O_RDWR, 10, append(append(append([]byte(nil), old[:10]...), "ab\x00\x00\x00cd"...), old[17:]...)},
		"at the end":     {os.O_RDWR, 100, append(append([]byte(nil), old...), "ab\x00\x00\x00cd"...)},
		"appended":       {os.O_RDWR | os.O_APPEND, 0, append(append([]byte(nil), old...), "ab\x00\x00\x00cd"...)},
	} {
		path := filepath.Join(t.TempDir(), "out")
		if err := os.WriteFile(path, old, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, c.flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Seek(c.start, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		o, err := openfile.OpenOutput(t.Context(), fmt.Sprint("/dev/fd/", f.Fd()))
		if err != nil || o == nil {
			t.Fatalf("%s: OpenOutput = %v, %v", name, o, err)
		}
		_, err = o.Write([]byte("ab"))
		err = errors.Join(err, o.WriteZeros(3))
		_, last := o.Write([]byte("cd"))
		if err := errors.Join(err, last, o.Close()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, c.want) {
			t.Errorf("%s: the file holds %q, %v; want %q", name, got, err, c.want)
		}
	}
}

func TestOutputRefuses(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := openfile.OpenOutput(t.Context(), fmt.Sprint("/dev/fd/", f.Fd())); !errors.Is(err, openfile.ErrReadOnly) {
		t.Errorf("OpenOutput of a file that is open for reading = %v", err)
	}
	both, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer both.Close()
	if err := openfile.RefuseClosed(openfile.Stdin, both); !errors.Is(err, openfile.ClosedError{FD: openfile.Stdin}) {
		t.Errorf("RefuseClosed = %v", err)
	}
	if err := openfile.RefuseClosed(openfile.Stdin, f); err != nil {
		t.Errorf("RefuseClosed of </dev/null = %v", err)
	}
	if o, err := openfile.OpenOutput(t.Context(), filepath.Join(t.TempDir(), "none")); o != nil || err != nil {
		t.Errorf("OpenOutput of a name that is not there = %v, %v", o, err)
	}
}

// TestFIFO: OpenInput and OpenOutput block until the other end of a FIFO is opened, or the context ends.
func TestFIFO(t *testing.T) {
	path, alone := filepath.Join(t.TempDir(), "fifo"), filepath.Join(t.TempDir(), "alone")
	if err := errors.Join(unix.Mkfifo(path, 0o600), unix.Mkfifo(alone, 0o600)); err != nil {
		t.Fatal(err)
	}
	if !openfile.IsStream(path) {
		t.Error("IsStream of a FIFO = false")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := openfile.OpenInput(ctx, alone); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("OpenInput of a FIFO that no process writes = %v", err)
	}
	written := make(chan error, 1)
	go func() {
		o, err := openfile.OpenOutput(t.Context(), path)
		if err == nil {
			_, err = o.Write([]byte("image"))
			err = errors.Join(err, o.WriteZeros(2), o.Close())
		}
		written <- err
	}()
	in, err := openfile.OpenInput(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(in.Stream)
	if err := errors.Join(err, <-written); err != nil || string(got) != "image\x00\x00" {
		t.Errorf("read %q, %v", got, err)
	}
}

// TestInputSeeks: an open file with random access is read from its current offset.
func TestInputSeeks(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("headimage"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(4, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	in, err := openfile.OpenInput(t.Context(), fmt.Sprint("/proc/self/fd/", f.Fd()))
	if err != nil || in.Stream != nil {
		t.Fatalf("OpenInput = %v, %v", in, err)
	}
	defer in.Close()
	got := make([]byte, 5)
	if _, err := in.File.ReadAt(got, 0); err != nil || string(got) != "image" || in.File.Size() != 5 {
		t.Errorf("read %q of %d bytes, %v", got, in.File.Size(), err)
	}
}

// TestDescriptorStaysOpen: closing an input or output of an open file does not close the process's descriptor.
func TestDescriptorStaysOpen(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	path := fmt.Sprint("/dev/fd/", f.Fd())
	for range 3 {
		in, err := openfile.OpenInput(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		in.Close()
		out, err := openfile.OpenOutput(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if err := out.Close(); err != nil {
			t.Fatal(err)
		}
		runtime.GC() // closes unreferenced files
		time.Sleep(time.Millisecond)
	}
	if _, err := f.WriteString("x"); err != nil {
		t.Error(err)
	}
}

type stuck struct{ release chan struct{} }

func (s stuck) Write(p []byte) (int, error) { <-s.release; return len(p), nil }

// TestWriter: a write ends soon after the context, and a closed pipe ends the job unless the output is optional.
func TestWriter(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := stuck{make(chan struct{})}
	defer close(s.release)
	if _, err := openfile.NewWriter(ctx, s, nil).Write([]byte("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("Write to a stalled reader = %v", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r.Close()
	gone := false
	to := openfile.NewWriter(t.Context(), w, func() { gone = true })
	if _, err := openfile.Optional(to).Write([]byte("x")); err != nil || gone {
		t.Errorf("an optional write without a reader = %v", err)
	}
	if _, err := to.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) || !gone {
		t.Errorf("a write without a reader = %v, told %v", err, gone)
	}
}
