package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/internal/blockdev"
	"cairn/internal/test/need"
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
		if fd, ok := descriptor(path); ok != (want >= 0) || ok && fd != want {
			t.Errorf("descriptor(%q) = %d, %v; want %d", path, fd, ok, want)
		}
	}
}

// TestRefuseCharacter: a character device is no file to be replaced; flash is written by its own tools.
func TestRefuseCharacter(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	for name, hint := range map[string]string{
		"ubi0_1": "| ubiupdatevol -s 4711 %s -'",
		"mtd3":   "| nandwrite -p %s -'",
		"other":  "assemble INDEX - >%s'",
	} {
		path := filepath.Join(dir, name)
		if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err != nil {
			t.Skipf("making a device: %v", err)
		}
		refused, ok := refuseCharacter(path, 4711).(*blockdev.RefusedError)
		if want := fmt.Sprintf(hint, path); !ok || !strings.Contains(refused.Hint, want) {
			t.Errorf("%s: %+v, want the hint %q", name, refused, want)
		}
	}
	if err := refuseCharacter(dir, 1); err != nil {
		t.Errorf("a directory: %v", err)
	}
}
