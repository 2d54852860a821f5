package atomicfile

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// maxLinks is the largest number of links that a name may lead through, as in the kernel.
const maxLinks = 40

// Resolve returns the path of the file that a write to name changes or creates. It follows symbolic links, also
// a last link to a file that does not exist.
//
// The error is fs.ErrNotExist for a file that does not exist under /dev, /sys or /proc: a device was meant, and
// a file in its place would fill memory. It is the same for a link that leads to no path, such as /dev/stdout
// on a pipe.
func Resolve(name string) (string, error) {
	_, err := os.Stat(name)
	exists := err == nil
	if !exists && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	for range maxLinks {
		next, ok := linkAt(name)
		switch {
		case !ok && exists:
			_, err := os.Lstat(name) // the text of a link under /proc may be the path of no file
			return name, err
		case !ok:
			return name, checkPlace(name)
		}
		if err := checkLink(name); err != nil {
			return "", err
		}
		name = next
	}
	return "", &fs.PathError{Op: "open", Path: name, Err: syscall.ELOOP}
}

// checkLink refuses a symbolic link that another user may have planted in a directory such as /tmp: one that belongs
// to neither this process's user nor the owner of a sticky directory that all users may write. Where
// fs.protected_symlinks is set, the kernel refuses to follow it too, but allows to read it.
func checkLink(name string) error {
	link, err := os.Lstat(name)
	if err != nil || link.Mode().Type() != fs.ModeSymlink {
		return err
	}
	dir, _ := filepath.Split(name)
	parent, err := os.Stat(cmp.Or(dir, "."))
	if err != nil {
		return err
	}
	owner := link.Sys().(*syscall.Stat_t).Uid
	if parent.Mode()&fs.ModeSticky == 0 || parent.Mode()&0o002 == 0 ||
		int(owner) == os.Geteuid() || owner == parent.Sys().(*syscall.Stat_t).Uid {
		return nil
	}
	return &fs.PathError{Op: "open", Path: name, Err: fmt.Errorf("%w: it is a symbolic link of user %d", syscall.EACCES, owner)}
}

// linkAt returns the target of the symbolic link name.
func linkAt(name string) (to string, ok bool) {
	to, err := os.Readlink(name)
	if err != nil {
		return "", false
	}
	if !filepath.IsAbs(to) {
		// Not filepath.Join: it would remove "link/..", which is not the link's directory.
		dir, _ := filepath.Split(name)
		to = dir + to
	}
	return to, true
}

// checkPlace refuses a new file in the directories of the kernel.
func checkPlace(name string) error {
	if root := kernelTree(name); root != "" {
		return &fs.PathError{Op: "open", Path: name, Err: fmt.Errorf("%w (no file is made under %s)", syscall.ENOENT, root)}
	}
	return nil
}

// kernelTree returns the directory of the kernel, /dev, /sys or /proc, that path lies in, and "" for other
// paths. Files under /dev/shm are ordinary files.
func kernelTree(path string) string {
	dir, rest := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	dir, err := filepath.Abs(dir)
	if real, err := resolveExisting(dir); err == nil {
		dir = real
	}
	if err != nil {
		return ""
	}
	at := filepath.Join(dir, rest) + "/"
	if strings.HasPrefix(at, "/dev/shm/") && len(at) > len("/dev/shm/") {
		return ""
	}
	for _, root := range []string{"/dev", "/sys", "/proc"} {
		if strings.HasPrefix(at, root+"/") {
			return root
		}
	}
	return ""
}

// resolveExisting resolves the symbolic links of the part of dir that exists.
func resolveExisting(dir string) (string, error) {
	real, err := filepath.EvalSymlinks(dir)
	if !errors.Is(err, fs.ErrNotExist) || filepath.Dir(dir) == dir {
		return real, err
	}
	parent, err := resolveExisting(filepath.Dir(dir))
	return filepath.Join(parent, filepath.Base(dir)), err
}
