package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"cairn/internal/test/need"
)

// links creates symbolic links in a new directory, beside a directory sub and a file.
func links(t *testing.T, targets map[string]string) (dir string) {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	err = errors.Join(err, os.MkdirAll(filepath.Join(dir, "sub/deep"), 0o700), os.WriteFile(filepath.Join(dir, "file"), []byte("old"), 0o600))
	for name, to := range targets {
		err = errors.Join(err, os.Symlink(to, filepath.Join(dir, name)))
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestWriteFollowsLinks(t *testing.T) {
	dir := links(t, map[string]string{
		"to-file": "file", "to-new": "sub/new", "chain": "chain-2", "chain-2": "sub/chained",
		"way": "sub/deep", "up": "way/../upward", "sub/back": "../returned",
	})
	for name, made := range map[string]string{
		"to-file": "file", "to-new": "sub/new", "chain": "sub/chained", "way/below": "sub/deep/below", "up": "sub/upward",
		"sub/back": "returned",
	} {
		if err := Write(filepath.Join(dir, name), []byte(name), 0o644); err != nil {
			t.Error(err)
			continue
		}
		path := filepath.Join(dir, made)
		got, err := os.ReadFile(path)
		info, err2 := os.Lstat(path)
		if err := errors.Join(err, err2); err != nil || string(got) != name || !info.Mode().IsRegular() {
			t.Errorf("after writing %s, %s holds %q, %v; want a file", name, made, got, err)
		}
	}
	for _, link := range []string{"to-file", "to-new", "chain", "chain-2", "way", "up", "sub/back"} {
		if _, err := os.Readlink(filepath.Join(dir, link)); err != nil {
			t.Errorf("the link %s: %v", link, err)
		}
	}
}

// TestPlantedLink: another user's link in a directory such as /tmp is not followed. The kernel allows to read it also
// where it refuses to follow it.
func TestPlantedLink(t *testing.T) {
	need.Root(t)
	dir := links(t, map[string]string{"planted": "../file", "own": "file", "dangling": "../new"})
	shared := filepath.Join(dir, "shared")
	err := errors.Join(os.Mkdir(shared, 0o700), os.Chmod(shared, fs.ModeSticky|0o777))
	for _, name := range []string{"planted", "own", "dangling"} {
		err = errors.Join(err, os.Rename(filepath.Join(dir, name), filepath.Join(shared, name)))
	}
	for _, name := range []string{"planted", "dangling"} {
		err = errors.Join(err, os.Lchown(filepath.Join(shared, name), 65534, 65534))
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"planted", "dangling"} {
		if err := Write(filepath.Join(shared, name), []byte("new"), 0o600); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("writing %s: %v, want %v", name, err, fs.ErrPermission)
		}
	}
	if err := Write(filepath.Join(shared, "own"), []byte("new"), 0o600); err != nil {
		t.Error(err)
	}
	if err := os.Chmod(shared, 0o755); err != nil { // all users trust its owner
		t.Fatal(err)
	}
	if err := Write(filepath.Join(shared, "planted"), []byte("new"), 0o600); err != nil {
		t.Error(err)
	}
}

// TestNoFileAmongDevices: a missing name under /dev was meant to be a device.
func TestNoFileAmongDevices(t *testing.T) {
	dir := links(t, map[string]string{
		"direct": "/dev/no-such", "chain": "direct", "dev": "/dev", "disk": "dev/no-such", "sys": "/sys/no-such",
		"proc": "/proc/no-such", "loop": "loop", "dots": "/usr/../dev/no-such",
	})
	t.Chdir("/dev")
	for _, name := range []string{
		"/dev/no-such", "/dev//../dev/no-such", "/dev/no-such/dir/file", "/sys/no-such", "/proc/no-such", "no-such", "./no-such",
		dir + "/direct", dir + "/chain", dir + "/disk", dir + "/dev/no-such", dir + "/sys", dir + "/proc", dir + "/dots",
		dir + "/absent/file",
	} {
		if err := Write(name, []byte("x"), 0o644); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Write(%s) = %v, want ErrNotExist", name, err)
		}
	}
	if _, err := Resolve(dir + "/loop"); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("Resolve of a loop = %v, want ELOOP", err)
	}
	if _, err := os.Lstat("/dev/no-such"); err == nil {
		t.Error("/dev/no-such was made")
	}
	if to, err := os.Readlink(dir + "/direct"); err != nil || to != "/dev/no-such" {
		t.Errorf("the link is %q, %v", to, err)
	}
}

// TestSharedMemory: /dev/shm holds files as any other directory.
func TestSharedMemory(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "atomicfile")
	if err != nil {
		t.Skip(err)
	}
	defer os.RemoveAll(dir)
	if err := Write(dir+"/new", []byte("x"), 0o644); err != nil {
		t.Error(err)
	}
}
