package cachedir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// TestReadersCannotLock: users who may not write the cache cannot open the files that it locks, also those of an
// earlier version.
func TestReadersCannotLock(t *testing.T) {
	path := t.TempDir()
	s := newSample(1, kib)
	write(t, open(t, path, 0), s)
	for _, name := range []string{"state", "writers", "evictor"} {
		file := filepath.Join(path, controlName, name)
		if err := os.Chmod(file, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d := open(t, path, 0)
	write(t, d, s)
	d.startEviction(d.ledger, request{})
	d.settle()
	for _, name := range []string{"state", "writers", "evictor"} {
		info, err := os.Stat(filepath.Join(path, controlName, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v, want 0600", name, info.Mode(), err)
		}
	}
}

func TestWithoutReaders(t *testing.T) {
	for mode, want := range map[fs.FileMode]fs.FileMode{0o644: 0o600, 0o600: 0o600, 0o664: 0o660, 0o666: 0o666, 0o640: 0o600, 0o444: 0} {
		if got := withoutReaders(mode); got != want {
			t.Errorf("withoutReaders(%04o) = %04o, want %04o", mode, got, want)
		}
	}
}

// TestLockedState: another process that keeps the state locked delays this one once, by lockPatience.
func TestLockedState(t *testing.T) {
	path := t.TempDir()
	s := newSample(1, kib)
	write(t, open(t, path, 0), s)
	state, err := os.Open(filepath.Join(path, controlName, "state"))
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	if err := unix.Flock(int(state.Fd()), unix.LOCK_SH); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		d := Open(path, Options{})
		defer d.Close()
		for range 5 {
			if err := d.Write(t.Context(), s.name(), s.data); !errors.Is(err, errBusy) {
				t.Errorf("Write = %v, want errBusy", err)
			}
		}
		if !has(t, d, s) {
			t.Error("the chunk cannot be read")
		}
		if took := time.Since(start); took > lockPatience {
			t.Errorf("the lock took %v, want at most %v", took, lockPatience)
		}
	})
}

// TestExchangedControlDir: the files of dead writers are removed by the handle of the cache, and never through a link
// that leads out of it.
func TestExchangedControlDir(t *testing.T) {
	path, outside := t.TempDir(), t.TempDir()
	s := newSample(1, kib)
	d := open(t, path, 0)
	write(t, d, s)
	victim := filepath.Join(outside, "precious"+tempSuffix)
	control := filepath.Join(path, controlName)
	err := errors.Join(os.WriteFile(victim, nil, 0o600), os.Rename(control, control+"-moved"), os.Symlink(outside, control))
	if err != nil {
		t.Fatal(err)
	}
	_ = d.ledger.removeTempFiles()
	_ = d.Write(t.Context(), s.name(), s.data)
	if left, err := os.ReadDir(outside); err != nil || len(left) != 1 {
		t.Errorf("outside are %v, %v, want the file that was there", left, err)
	}
}

// TestLinkedDirectory: a chunk is not written through a link in the place of its directory.
func TestLinkedDirectory(t *testing.T) {
	path, outside := t.TempDir(), t.TempDir()
	s := newSample(1, kib)
	d := open(t, path, 0)
	write(t, d, newSample(2, kib))
	if err := os.Symlink(outside, filepath.Join(path, filepath.Dir(s.name()))); err != nil {
		t.Fatal(err)
	}
	if err := d.Write(t.Context(), s.name(), s.data); err == nil {
		t.Error("a chunk was written through a link")
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) != 0 {
		t.Errorf("outside are %v, %v", left, err)
	}
}

// TestSpecialFiles: a FIFO in the place of any file of the cache blocks nothing. One in the place of a chunk is
// replaced.
func TestSpecialFiles(t *testing.T) {
	s := newSample(1, kib)
	for _, name := range []string{controlName, controlName + "/state", controlName + "/writers", controlName + "/evictor",
		filepath.Dir(s.name()), s.name()} {
		path := t.TempDir()
		write(t, open(t, path, 0), s)
		at := filepath.Join(path, name)
		if err := errors.Join(os.RemoveAll(at), syscall.Mkfifo(at, 0o600)); err != nil {
			t.Fatal(err)
		}
		d := open(t, path, 0)
		if _, err := d.Read(t.Context(), s.name(), nil, 1<<20); name == s.name() && err == nil {
			t.Error("a FIFO is a chunk")
		}
		err := d.Write(t.Context(), s.name(), s.data)
		if name == s.name() && (err != nil || !has(t, d, s)) {
			t.Errorf("the FIFO is not replaced: %v", err)
		}
		if d.ledger != nil {
			d.startEviction(d.ledger, request{need: kib})
			d.settle()
		}
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if d := open(t, fifo, 0); d.Write(t.Context(), s.name(), s.data) == nil {
		t.Error("a FIFO is a cache")
	}
}
