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

// maxLinks is how many links one name may lead through, as in the kernel.
const maxLinks = 40

// Resolve returns the path of the file that writing to name changes or makes: symbolic links are followed, also a
// last one that leads to nothing. A file that is not there yet, and would lie under /dev, /sys or /proc, is an
// fs.ErrNotExist: a device was meant, and a file made in its place would fill memory.
func Resolve(name string) (string, error) {
	_, err := os.Stat(name)
	if err == nil {
		return followed(name)
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

// followed is an existing name without a last link. A link that leads to no path (/dev/stdout) is left.
func followed(name string) (string, error) {
	if _, ok := linkAt(name); !ok {
		return name, nil
	}
	return filepath.EvalSymlinks(name)
}

// linkAt returns where the symbolic link called name points.
func linkAt(name string) (to string, ok bool) {
	to, err := os.Readlink(name)
	if err != nil {
		return "", false
	}
	if !filepath.IsAbs(to) {
		// Not filepath.Join: it removes "link/..", which is not where link was.
		dir, _ := filepath.Split(name)
		to = dir + to
	}
	return to, true
}

// checkPlace refuses a name that is not there yet where the kernel keeps devices.
func checkPlace(name string) error {
	if root := kernelTree(name); root != "" {
		return &fs.PathError{Op: "open", Path: name, Err: fmt.Errorf("%w (no file is made under %s)", syscall.ENOENT, root)}
	}
	return nil
}

// kernelTree is the directory of the kernel's that path lies in, or would lie in: /dev, /sys or /proc; or "". In
// /dev/shm lie files.
func kernelTree(path string) string {
	dir, rest := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	dir, err := filepath.Abs(dir)
	if real, err := existing(dir); err == nil {
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

// existing is dir without symbolic links, as far as it exists.
func existing(dir string) (string, error) {
	real, err := filepath.EvalSymlinks(dir)
	if !errors.Is(err, fs.ErrNotExist) || filepath.Dir(dir) == dir {
		return real, err
	}
	parent, err := existing(filepath.Dir(dir))
	return filepath.Join(parent, filepath.Base(dir)), err
}
