package atomicfile

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func mustResume(t *testing.T, name string) *File {
	t.Helper()
	f, err := Resume(name, 0o640)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestResume(t *testing.T) {
	name := filepath.Join(t.TempDir(), "image")
	f := mustResume(t, name)
	if _, err := f.WriteString("half "); err != nil {
		t.Fatal(err)
	}
	if _, err := Resume(name, 0o640); !errors.Is(err, ErrBusy) {
		t.Errorf("a second Resume = %v, want ErrBusy", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the name is given before Commit: %v", err)
	}
	f = mustResume(t, name)
	if _, err := f.Seek(0, io.SeekEnd); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("whole"); err != nil {
		t.Fatal(err)
	}
	if err := f.Commit(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(name)
	if err != nil || string(got) != "half whole" {
		t.Errorf("the file holds %q, %v", got, err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(name), ".*")); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
}

func TestDiscard(t *testing.T) {
	name := filepath.Join(t.TempDir(), "image")
	f := mustResume(t, name)
	if err := f.Discard(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Errorf("Close after Discard = %v", err)
	}
	if left, _ := os.ReadDir(filepath.Dir(name)); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
}

// TestResumeRefuses: Resume does not write through a link in the temporary file's place.
func TestResumeRefuses(t *testing.T) {
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for kind, plant := range map[string]func(old, new string) error{
		"symbolic link": os.Symlink, "hard link": os.Link,
		"link in the directory": func(_, new string) error { return os.Symlink("victim", new) },
		"FIFO":                  func(_, new string) error { return syscall.Mkfifo(new, 0o600) },
	} {
		name := filepath.Join(dir, kind)
		if err := plant(victim, filepath.Join(dir, "."+kind+".partial")); err != nil {
			t.Fatal(err)
		}
		if _, err := Resume(name, 0o600); err == nil {
			t.Errorf("Resume through a %s succeeded", kind)
		}
	}
	if got, err := os.ReadFile(victim); err != nil || string(got) != "precious" {
		t.Errorf("the victim holds %q, %v", got, err)
	}
}
