package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"cairn/internal/owndir"
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
	f, err := resumeAt(name, mode)
	if err != nil {
		return nil, fmt.Errorf("creating %s: %w", name, err)
	}
	return f, nil
}

// resumeAt is Resume for a resolved name.
func resumeAt(name string, mode fs.FileMode) (*File, error) {
	f, err := newFile(name, mode)
	if err != nil {
		return nil, err
	}
	f.keep = true
	f.temp = "." + f.base[:min(len(f.base), maxBase)] + ".partial"
	if f.File, err = claimPartial(f.dir, f.temp); err != nil {
		_ = f.dir.Close()
		return nil, err
	}
	return f, nil
}

// claimPartial opens or creates the temporary file, and locks it. It tries again if the file was renamed to its final
// name meanwhile.
func claimPartial(dir *os.Root, name string) (*os.File, error) {
	for {
		f, err := owndir.OpenNoFollow(dir, name, os.O_RDWR|os.O_CREATE)
		if err != nil {
			return nil, err
		}
		current, err := lockPartial(f, dir, name)
		if current && err == nil {
			return f, nil
		}
		f.Close()
		if err != nil {
			return nil, err
		}
	}
}

// lockPartial locks the temporary file, and reports whether it still has its name. It first checks that an earlier run
// of this user left the file, so it never waits for or locks another user's file.
func lockPartial(f *os.File, dir *os.Root, name string) (current bool, err error) {
	mine, err := f.Stat()
	if err != nil {
		return false, err
	}
	if st := mine.Sys().(*syscall.Stat_t); !mine.Mode().IsRegular() || st.Nlink > 1 || int(st.Uid) != os.Geteuid() {
		return false, fmt.Errorf("%s is not a file that an earlier run left", f.Name())
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return false, ErrBusy
	} else if err != nil {
		return false, err
	}
	named, err := dir.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(mine, named), err
}
