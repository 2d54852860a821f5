package rotate_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/internal/rotate"
)

var errHalf = errors.New("the files do not belong together")

// pair parses two files with the same text.
func pair(texts [][]byte) (string, error) {
	if string(texts[0]) != string(texts[1]) {
		return "", errHalf
	}
	return string(texts[0]), nil
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// replace atomically replaces the text of a file.
func replace(t *testing.T, path, text string) {
	t.Helper()
	write(t, path+".new", text)
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func check(t *testing.T, value func() (string, error), want string, wantErr error) {
	t.Helper()
	if got, err := value(); got != want || !errors.Is(err, wantErr) {
		t.Errorf("value is %q, %v; want %q, %v", got, err, want, wantErr)
	}
}

func TestValueFollowsFiles(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	write(t, a, "one")
	write(t, b, "one")
	f, err := rotate.Open(nil, pair, a, b)
	if err != nil {
		t.Fatal(err)
	}
	check(t, f.Value, "one", nil)
	replace(t, a, "two")
	check(t, f.Value, "one", errHalf)
	check(t, f.Value, "one", errHalf)
	replace(t, b, "two")
	check(t, f.Value, "two", nil)
	if err := os.Remove(a); err != nil {
		t.Fatal(err)
	}
	check(t, f.Value, "two", fs.ErrNotExist)
	check(t, f.Reread, "two", fs.ErrNotExist)
	write(t, a, "three")
	write(t, b, "three")
	check(t, f.Value, "three", nil)
}

// TestReread: Reread reads a change that the file's metadata do not show.
func TestReread(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	moment := time.Now().Add(-time.Hour)
	set := func(text string) {
		write(t, path, text)
		if err := os.Chtimes(path, moment, moment); err != nil {
			t.Fatal(err)
		}
	}
	set("one")
	f, err := rotate.Open(nil, pair, path, path)
	if err != nil {
		t.Fatal(err)
	}
	set("two")
	check(t, f.Value, "one", nil)
	check(t, f.Reread, "two", nil)
	check(t, f.Value, "two", nil)
}

// TestFIFO: a FIFO that replaces a file is an error, and blocks nothing.
func TestFIFO(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	write(t, path, "one")
	f, err := rotate.Open(nil, pair, path, path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, value := range []func() (string, error){f.Value, f.Reread} {
		if got, err := value(); got != "one" || err == nil {
			t.Errorf("value is %q, %v; want the previous one and an error", got, err)
		}
	}
	replace(t, path, "two")
	check(t, f.Value, "two", nil)
}

func TestRefused(t *testing.T) {
	dir := t.TempDir()
	large := filepath.Join(dir, "large")
	write(t, large, strings.Repeat("x", 1<<20+1))
	for _, path := range []string{dir, large, filepath.Join(dir, "absent")} {
		if _, err := rotate.Open(nil, pair, path, path); err == nil {
			t.Errorf("Open(%s) succeeded", path)
		}
	}
}

func TestConcurrent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	write(t, path, "0")
	f, err := rotate.Open(nil, pair, path, path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				if got, err := f.Value(); err != nil && !errors.Is(err, errHalf) || got == "" {
					t.Errorf("Value = %q, %v", got, err)
				}
			}
		})
	}
	for range 50 {
		replace(t, path, strings.Repeat("x", 10))
		replace(t, path, "0")
	}
	wg.Wait()
}

// TestPipe: the text of a pipe is kept, since a pipe cannot be read again.
func TestPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString("secret"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	f, err := rotate.Open(nil, func(texts [][]byte) (string, error) { return string(texts[0]), nil }, fmt.Sprintf("/dev/fd/%d", r.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	for _, again := range []func() (string, error){f.Value, f.Reread, f.Value} {
		if got, err := again(); got != "secret" || err != nil {
			t.Errorf("the value is %q, %v", got, err)
		}
	}
}

// TestChanged: Changed is called once for each change, and once for each error.
func TestChanged(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	write(t, a, "one")
	write(t, b, "one")
	f, err := rotate.Open(nil, pair, a, b)
	if err != nil {
		t.Fatal(err)
	}
	var got []error
	f.Changed = func(err error) { got = append(got, err) }
	check(t, f.Value, "one", nil)
	replace(t, a, "two")
	check(t, f.Value, "one", errHalf)
	check(t, f.Value, "one", errHalf)
	replace(t, b, "two")
	check(t, f.Value, "two", nil)
	check(t, f.Value, "two", nil)
	if len(got) != 2 || !errors.Is(got[0], errHalf) || got[1] != nil {
		t.Errorf("reported are %v", got)
	}
}

// TestClosedToChildren: a child program does not inherit the open file that a secret was read from.
func TestClosedToChildren(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	write(t, file, "hush")
	for name, use := range map[string]func(r *rotate.Reader, path string) error{
		"Text": func(r *rotate.Reader, path string) error { _, err := r.Text(path); return err },
		"Path": func(r *rotate.Reader, path string) error { _, err := r.Path(path); return err },
	} {
		fd, err := unix.Open(file, unix.O_RDONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		path := fmt.Sprint("/proc/self/fd/", fd)
		if err := exec.CommandContext(t.Context(), "test", "-e", path).Run(); err != nil {
			t.Errorf("a child does not inherit an open file: %v", err)
		}
		if err := use(new(rotate.Reader), path); err != nil {
			t.Error(err)
		}
		if err := exec.CommandContext(t.Context(), "test", "-e", path).Run(); err == nil {
			t.Errorf("after %s a child inherits the file", name)
		}
		unix.Close(fd)
	}
}
