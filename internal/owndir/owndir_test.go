package owndir

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"cairn/internal/test/need"
)

const stranger = 65534

// TestOpenRefuses: a directory or file that other users may change is not opened, whichever way they may.
func TestOpenRefuses(t *testing.T) {
	need.Root(t)
	for name, test := range map[string]struct {
		change func(dir string) error
		refuse bool
	}{
		"own":            {func(string) error { return nil }, false},
		"another user's": {func(dir string) error { return os.Chown(dir, stranger, -1) }, true},
		"group writes":   {func(dir string) error { return os.Chmod(dir, 0o770) }, true},
		"others write":   {func(dir string) error { return os.Chmod(dir, 0o707) }, true},
		"sticky":         {func(dir string) error { return os.Chmod(dir, 0o777|os.ModeSticky) }, false},
		"another user's sticky": {func(dir string) error {
			return errors.Join(os.Chmod(dir, 0o777|os.ModeSticky), os.Chown(dir, stranger, -1))
		}, true},
		"own link": {func(dir string) error {
			return errors.Join(os.Rename(dir, dir+"2"), os.Symlink(dir+"2", dir))
		}, false},
		"another user's link": {func(dir string) error {
			return errors.Join(os.Rename(dir, dir+"2"), os.Symlink(dir+"2", dir), os.Lchown(dir, stranger, -1))
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "dir")
			if err := errors.Join(os.Mkdir(dir, 0o700), test.change(dir)); err != nil {
				t.Fatal(err)
			}
			root, err := Create(dir)
			if err == nil {
				root.Close()
			}
			if _, is := errors.AsType[*Error](err); is != test.refuse || (err == nil) == test.refuse {
				t.Errorf("Create = %v, want an Error: %v", err, test.refuse)
			}
		})
	}
}

// TestOpenFileRefuses: a special file, a link and another user's file are errors, and none of them blocks.
func TestOpenFileRefuses(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"good", "foreign", "open"} {
		if err := os.WriteFile(file(name), []byte("text"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chown(file("foreign"), stranger, -1), os.Chmod(file("open"), 0o606),
		syscall.Mkfifo(file("fifo"), 0o600), os.Symlink("good", file("link")), os.Mkdir(file("sub"), 0o700)); err != nil {
		t.Fatal(err)
	}
	root, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if text, err := ReadFile(root, "good", 4); err != nil || string(text) != "text" {
		t.Errorf("ReadFile = %q, %v", text, err)
	}
	if _, err := ReadFile(root, "good", 3); err == nil {
		t.Error("a file beyond the limit was read")
	}
	for _, name := range []string{"foreign", "open", "fifo", "link", "sub", "absent"} {
		for _, flags := range []int{os.O_RDONLY, os.O_RDWR} {
			if f, err := OpenFile(root, name, flags); err == nil {
				f.Close()
				t.Errorf("OpenFile(%s) = nil", name)
			}
		}
	}
	if _, err := Open(file("fifo")); err == nil {
		t.Error("a FIFO was opened as a directory")
	}
}
