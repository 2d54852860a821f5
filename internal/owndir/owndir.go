// Package owndir opens directories and files whose content the program believes: caches of verified data, state,
// the directories of sockets. They must belong to root or to the user of the process, and no other user may write
// them. A directory is an os.Root, so all work below it goes by its handle and never leaves it. The package does not
// know what the files contain.
package owndir

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Error means that other users may change a directory or file.
type Error struct {
	Path   string
	Reason string
}

func (e *Error) Error() string { return fmt.Sprintf("%s is not trusted: %s", e.Path, e.Reason) }

// Open opens a directory. It returns an *Error if other users may change the directory. A symbolic link of another
// user is not followed.
func Open(dir string) (*os.Root, error) {
	if info, err := os.Lstat(filepath.Clean(dir)); err == nil && info.Mode().Type() == fs.ModeSymlink {
		if err := checkOwner(dir, info); err != nil {
			return nil, err
		}
	}
	root, err := os.OpenRoot(dir + "/") // the slash refuses a FIFO, which would block
	if err != nil {
		return nil, err
	}
	if err := CheckDir(root, "."); err != nil {
		_ = root.Close()
		return nil, err
	}
	return root, nil
}

// Create is like Open, and first makes the directory and its missing parents with mode 0700.
func Create(dir string) (*os.Root, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return Open(dir)
}

// CheckDir returns an error unless name is a directory in root that other users may not change.
func CheckDir(root *os.Root, name string) error {
	info, err := root.Lstat(name)
	if err != nil {
		return err
	}
	at := filepath.Join(root.Name(), name)
	if !info.IsDir() {
		return fmt.Errorf("%s is not a directory", at)
	}
	return Check(at, info)
}

// CreateDir makes a directory in root with mode 0700 if it does not exist, and checks it like CheckDir.
func CreateDir(root *os.Root, name string) error {
	if err := root.MkdirAll(name, 0o700); err != nil {
		return err
	}
	return CheckDir(root, name)
}

// Check returns an *Error unless the file at a path belongs to root or to the user of the process, and only its owner
// may write it. In a sticky directory such as /tmp other users may add files, but not replace those of their owner.
func Check(path string, info fs.FileInfo) error {
	if err := checkOwner(path, info); err != nil {
		return err
	}
	mode := info.Mode()
	if mode&0o022 != 0 && !(mode.IsDir() && mode&fs.ModeSticky != 0) {
		mend := "run chmod go-w"
		if mode.IsDir() {
			mend += ", or name a new directory in it"
		}
		return &Error{path, fmt.Sprintf("others than its owner may write it (mode %04o); %s", mode.Perm(), mend)}
	}
	return nil
}

func checkOwner(path string, info fs.FileInfo) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Uid == 0 || int(st.Uid) == os.Geteuid() {
		return nil
	}
	return &Error{path, fmt.Sprintf("it belongs to user %d; use another one, or run chown", st.Uid)}
}

// OpenFile is OpenRegular, but returns an *Error if other users may write the file.
func OpenFile(root *os.Root, name string, flags int) (*os.File, error) {
	f, info, err := OpenRegular(root, name, flags)
	if err != nil {
		return nil, err
	}
	if err := Check(f.Name(), info); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// OpenRegular opens a regular file of any owner in root, and creates it with mode 0600 if flags has os.O_CREATE. Another
// kind of file is an error and does not block.
func OpenRegular(root *os.Root, name string, flags int) (*os.File, fs.FileInfo, error) {
	f, err := OpenNoFollow(root, name, flags)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file; remove it", f.Name())
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

// OpenNoFollow opens a file of any kind and owner in root. It creates a file with mode 0600 if flags has os.O_CREATE. It does not block, and does not follow a symbolic link at
// the end of name, which os.Root would follow to another file in root.
func OpenNoFollow(root *os.Root, name string, flags int) (*os.File, error) {
	dir, err := openDir(root, path.Dir(name))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	flags |= unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	at := filepath.Join(root.Name(), name)
	for {
		fd, err := unix.Openat(int(dir.Fd()), path.Base(name), flags, 0o600)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, &fs.PathError{Op: "open", Path: at, Err: err}
		default:
			return os.NewFile(uintptr(fd), at), nil
		}
	}
}

// ReadFile returns the content of a file that OpenFile opens. A file larger than limit is an error.
func ReadFile(root *os.Root, name string, limit int64) ([]byte, error) {
	f, err := OpenFile(root, name, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", f.Name(), limit)
	}
	return data, err
}

// ReadDir returns the names in a directory in root.
func ReadDir(root *os.Root, name string) ([]string, error) {
	d, err := openDir(root, name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// SyncDir makes the names in a directory in root durable.
func SyncDir(root *os.Root, name string) error {
	d, err := openDir(root, name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func openDir(root *os.Root, name string) (*os.File, error) {
	return root.OpenFile(path.Clean(name), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
}
