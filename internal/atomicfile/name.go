package atomicfile

import (
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
	if err == nil {
		if _, ok := linkAt(name); !ok {
			return name, nil
		}
		return filepath.EvalSymlinks(name)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	for range maxLinks {
		next, ok := linkAt(name)
		if !ok {
			return name, checkPlace(name)
		}
		name = next
	}
	return "", &fs.PathError{Op: "open", Path: name, Err: syscall.ELOOP}
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
