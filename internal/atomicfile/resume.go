package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrBusy means that another process is writing the file.
var ErrBusy = errors.New("another process is writing it")

// Resume is like Create, but the temporary file has a fixed name, .NAME.partial, and outlives Close and
// crashes. The next Resume continues with its content. While it is open, Resume in another process returns
// ErrBusy. Discard removes the temporary file.
func Resume(name string, mode fs.FileMode) (*File, error) {
	name, err := resolveTarget(name)
	if err != nil {
		return nil, fmt.Errorf("creating %s: %w", name, err)
	}
	base := filepath.Base(name)
	partial := filepath.Join(filepath.Dir(name), "."+base[:min(len(base), maxBase)]+".partial")
	f, err := claimPartial(partial)
	if err != nil {
		return nil, fmt.Errorf("creating %s: %w", name, err)
	}
	return &File{File: f, name: name, mode: mode.Perm(), keep: true}, nil
}

// claimPartial opens or creates the temporary file, and locks it. It tries again if the file was renamed to its final
// name meanwhile.
func claimPartial(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		current, err := lockPartial(f, path)
		if current && err == nil {
			return f, nil
		}
		f.Close()
		if err != nil {
			return nil, err
		}
	}
}

// lockPartial locks the temporary file, and reports whether it still has its name.
func lockPartial(f *os.File, path string) (current bool, err error) {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return false, ErrBusy
	} else if err != nil {
		return false, err
	}
	mine, err := f.Stat()
	if err != nil {
		return false, err
	}
	if st := mine.Sys().(*syscall.Stat_t); !mine.Mode().IsRegular() || st.Nlink > 1 || int(st.Uid) != os.Geteuid() {
		return false, fmt.Errorf("%s is not a file that an earlier run left", path)
	}
	named, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(mine, named), err
}
