package local

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Everything that changes the bucket goes by the handle of its directory, and enters the directories below it
// without following links. Other users may write the bucket, and a path may lead elsewhere from one moment to the
// next.

// openRoot opens the bucket's directory. Its path may be a symbolic link.
func (b *Bucket) openRoot() (*os.File, error) {
	return os.OpenFile(b.root, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
}

// openBelow opens a directory below root without following links. A link or a file of that name is unix.ENOTDIR.
func openBelow(root *os.File, dir string) (*os.File, error) {
	fd, err := walkBelow(root, dir, func(at int, name string) (int, error) { return openDirAt(at, name, unix.O_RDONLY) })
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), filepath.Join(root.Name(), dir)), nil
}

// enterBelow returns a descriptor of a directory below root, for the *at system calls. It makes missing directories.
func enterBelow(root *os.File, dir string) (fd int, err error) {
	return walkBelow(root, dir, func(at int, name string) (int, error) {
		fd, err := openDirAt(at, name, unix.O_PATH)
		if !errors.Is(err, unix.ENOENT) {
			return fd, err
		}
		if err := unix.Mkdirat(at, name, 0o777); err != nil && !errors.Is(err, unix.EEXIST) {
			return -1, err
		}
		return openDirAt(at, name, unix.O_PATH)
	})
}

// walkBelow opens the parts of dir one after the other, and returns the descriptor of the last one.
func walkBelow(root *os.File, dir string, open func(at int, name string) (int, error)) (fd int, err error) {
	at, whole := int(root.Fd()), ""
	for name := range strings.SplitSeq(dir, "/") {
		fd, err := open(at, name)
		if whole != "" {
			_ = unix.Close(at)
		}
		whole = path.Join(whole, name)
		if err != nil {
			return -1, &fs.PathError{Op: "open directory", Path: filepath.Join(root.Name(), whole), Err: err}
		}
		at = fd
	}
	return at, nil
}

func openDirAt(at int, name string, flags int) (int, error) {
	return retryEINTR(func() (int, error) {
		return unix.Openat(at, name, flags|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
}

// unlinkAt removes a file in a directory, or an empty directory with unix.AT_REMOVEDIR. It ignores absence.
func unlinkAt(dir *os.File, name string, flags int) error {
	err := unix.Unlinkat(int(dir.Fd()), name, flags)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return &fs.PathError{Op: "remove", Path: filepath.Join(dir.Name(), name), Err: err}
}

// syncBelow makes the names in a directory below root durable.
func syncBelow(root *os.File, dir string) error {
	d, err := openBelow(root, dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// eachName calls do for each name in an open directory, as EachName does.
func eachName(dir *os.File, do func(name string) error) error {
	d, err := openBelow(dir, ".") // it has a position of its own
	if err != nil {
		return err
	}
	defer d.Close()
	return EachName(d, do)
}
