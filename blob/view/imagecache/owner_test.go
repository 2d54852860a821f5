package imagecache

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"cairn/internal/owndir"
	"cairn/internal/test/need"
)

// TestOthersBytes: bytes that another user may have written are not served, although the map of the image says that
// they are proven.
func TestOthersBytes(t *testing.T) {
	need.Root(t)
	const stranger = 65534
	old := newRig(t, mixed())
	old.writeAndFlush(0, old.x.Len())
	digest := filepath.Base(old.file.path)
	if err := old.dir.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".", imagesName, imagesName + "/" + digest, imagesName + "/" + digest + "/" + mapName,
		imagesName + "/" + digest + "/" + rawName} {
		for how, change := range map[string]func(path string, back bool) error{
			"owner": func(path string, back bool) error { return os.Chown(path, map[bool]int{false: stranger}[back], -1) },
			"mode": func(path string, back bool) error {
				return os.Chmod(path, map[bool]os.FileMode{false: 0o770, true: 0o700}[back])
			},
		} {
			path := filepath.Join(old.path, name)
			if err := change(path, false); err != nil {
				t.Fatal(err)
			}
			dir, err := Open(old.path, Options{})
			if err == nil {
				_, err = dir.Image(old.x)
				dir.Close()
			}
			if _, is := errors.AsType[*owndir.Error](err); !is {
				t.Errorf("opening the image with another %s of %s = %v, want an owndir.Error", how, name, err)
			}
			if err := change(path, true); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestSpecialFiles: a FIFO in the place of any file of the cache blocks nothing.
func TestSpecialFiles(t *testing.T) {
	for _, name := range []string{indexName, mapName, rawName, partialName, lockName} {
		r := newRig(t, mixed())
		r.writeAndFlush(0, r.x.Len())
		if err := r.dir.Remember([32]byte{}, r.x); err != nil {
			t.Fatal(err)
		}
		if err := r.dir.Close(); err != nil {
			t.Fatal(err)
		}
		path, record := filepath.Join(r.file.path, name), filepath.Join(r.path, locationFile([32]byte{}))
		_ = os.Remove(path)
		if err := errors.Join(syscall.Mkfifo(path, 0o600), os.Remove(record), syscall.Mkfifo(record, 0o600)); err != nil {
			t.Fatal(err)
		}
		dir, err := Open(r.path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		_, _ = dir.Image(r.x) // an error is right: the file is not there
		_ = dir.Recall([32]byte{})
		if err := dir.Close(); err != nil {
			t.Errorf("closing beside a FIFO %s: %v", name, err)
		}
	}
}

// TestExchangedDirectory: an eviction removes images by the handle of the cache. A link that takes the path of the cache
// meanwhile leads to nothing.
func TestExchangedDirectory(t *testing.T) {
	r := newRig(t, mixed())
	r.writeAndFlush(0, r.x.Len())
	digest := filepath.Base(r.file.path)
	if err := r.file.Close(); err != nil {
		t.Fatal(err)
	}
	outside, moved := t.TempDir(), r.path+"-moved"
	victim := filepath.Join(outside, imagesName, digest)
	if err := errors.Join(os.CopyFS(victim, os.DirFS(r.file.path)), os.Rename(r.path, moved), os.Symlink(outside, r.path)); err != nil {
		t.Fatal(err)
	}
	r.dir.evictClosed(nil, 1<<40)
	if _, err := os.Stat(filepath.Join(victim, mapName)); err != nil {
		t.Errorf("the eviction removed a file of another directory: %v", err)
	}
	if _, err := os.Stat(filepath.Join(moved, imagesName, digest)); !os.IsNotExist(err) {
		t.Errorf("the image was not evicted: %v", err)
	}
}
