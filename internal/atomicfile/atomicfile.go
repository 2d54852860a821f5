// Package atomicfile writes a whole file or no file. The bytes go to a temporary file beside the final name, and the
// complete, flushed file is renamed. A replaced file passes on its owner, group, mode and extended attributes. The
// package knows nothing of the bytes, and never writes to devices.
//
// The directory is opened once, and all later work goes by its handle. So another directory that gets its path
// meanwhile is not touched.
package atomicfile

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"

	"cairn/internal/owndir"
)

// ErrNotRegular means that a file must not replace the object at the final name: a directory, a device, a pipe, a
// socket, or a symbolic link to one.
var ErrNotRegular = errors.New("not a regular file")

// File is a file without its final name. It is the *os.File of the temporary file, open for reading and
// writing. It may be written in any order and sized with Truncate. Only Commit gives it its name.
type File struct {
	*os.File
	dir  *os.Root    // the directory; closed with the File
	base string      // the final name in dir
	temp string      // the temporary file's name in dir
	name string      // the path of the final name
	mode fs.FileMode // of a new file
	keep bool        // Close keeps the temporary file
	done bool        // committed or closed
	lost error       // returned by Lost
}

// Create starts a file with the given final name, in its directory. It follows symbolic links as Resolve does,
// and does not replace the link. The caller must call Close.
func Create(name string, mode fs.FileMode) (*File, error) {
	name, err := resolveTarget(name)
	if err != nil {
		return nil, fmt.Errorf("creating %s: %w", name, err)
	}
	f, err := createAt(name, mode)
	if err != nil {
		return nil, fmt.Errorf("creating %s: %w", name, err)
	}
	return f, nil
}

// createAt is Create for a resolved name.
func createAt(name string, mode fs.FileMode) (*File, error) {
	f, err := newFile(name, mode)
	if err != nil {
		return nil, err
	}
	if f.File, f.temp, err = createTemp(f.dir, f.base); err != nil {
		_ = f.dir.Close()
		return nil, err
	}
	return f, nil
}

// newFile opens the directory of a resolved name.
func newFile(name string, mode fs.FileMode) (*File, error) {
	dir, base := filepath.Split(name) // filepath.Dir would remove "link/..", which is not the link's directory
	root, err := os.OpenRoot(cmp.Or(dir, "."))
	if err != nil {
		return nil, err
	}
	return &File{dir: root, base: base, name: name, mode: mode.Perm()}, nil
}

// createTemp creates a temporary file for the final name, in the same directory of root.
func createTemp(root *os.Root, name string) (f *os.File, temp string, err error) {
	for range 1000 {
		temp = path.Join(path.Dir(name), temporaryName(path.Base(name)))
		f, err = root.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if !errors.Is(err, fs.ErrExist) {
			break
		}
	}
	return f, temp, err
}

// resolveTarget returns the path at which a file of this name is created. With an error it returns the name.
func resolveTarget(name string) (string, error) {
	if _, err := statReplaceable(name); err != nil {
		return name, err
	}
	path, err := Resolve(name)
	if err != nil {
		return name, err
	}
	return path, nil
}

// statReplaceable returns the state of the file at name, and nil if there is none. It returns an error if a file must
// not replace it.
func statReplaceable(name string) (fs.FileInfo, error) {
	info, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && !info.Mode().IsRegular() {
		err = ErrNotRegular
	}
	return info, err
}

// maxBase is the number of bytes of a name that its temporary file's name contains.
const maxBase = 200

// temporaryName returns .NAME.RANDOM.tmp, with NAME cut so that the result is a legal name.
func temporaryName(base string) string {
	return fmt.Sprintf(".%s.%d.tmp", base[:min(len(base), maxBase)], rand.Uint64())
}

// Commit sets the mode exactly (no umask), flushes the bytes, and renames the file to its final name, replacing
// a file of that name; then it flushes the directory. A new file keeps the replaced file's owner, group, mode
// and extended attributes, except for those that Lost returns. After an error before the renaming no file is
// left. After an error of the last flush the new file is there, and a power cut may undo its name.
func (f *File) Commit() error {
	if f.done {
		return fmt.Errorf("committing %s: %w", f.name, fs.ErrClosed)
	}
	f.done = true
	defer f.dir.Close()
	if err := f.rename(); err != nil {
		_ = errors.Join(f.dir.Remove(f.temp), f.File.Close())
		return fmt.Errorf("committing %s: %w", f.name, err)
	}
	if err := owndir.SyncDir(f.dir, "."); err != nil {
		return fmt.Errorf("flushing the name %s: %w", f.name, err)
	}
	return nil
}

// rename renames before it closes, because closing ends the claim on a temporary file that can be resumed. It ignores
// the error of closing, since Sync has reported all errors.
func (f *File) rename() error {
	old, err := statReplaceable(f.name)
	if err != nil {
		return err
	}
	if old == nil {
		err = f.File.Chmod(f.mode)
	} else {
		f.lost = inheritMetadata(f.File, f.name, old)
	}
	if err := errors.Join(err, f.File.Sync()); err != nil {
		return err
	}
	if err := f.dir.Rename(f.temp, f.base); err != nil {
		return err
	}
	f.File.Close()
	return nil
}

// Lost returns the attributes of the replaced file that Commit could not give to the new file, mostly for lack of
// privilege. It returns nil if there are none.
func (f *File) Lost() error { return f.lost }

// Close abandons a file that was not committed, and removes its temporary file unless Resume made it. After Commit or
// Close it does nothing, so it can be deferred.
func (f *File) Close() error {
	if f.done || !f.keep {
		return f.Discard()
	}
	f.done = true
	return errors.Join(f.File.Close(), f.dir.Close())
}

// Discard abandons a file that was not committed, and removes its temporary file.
func (f *File) Discard() error {
	if f.done {
		return nil
	}
	f.done = true
	if err := errors.Join(f.dir.Remove(f.temp), f.File.Close(), f.dir.Close()); err != nil {
		return fmt.Errorf("discarding the temporary file of %s: %w", f.name, err)
	}
	return nil
}

// Write durably writes data as the whole content of the file name. It does not report the attributes of a
// replaced file that it could not keep.
func Write(name string, data []byte, mode fs.FileMode) error {
	f, err := Create(name, mode)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return f.Commit()
}

// WriteIn durably writes data as the whole content of a file in root, with this mode. It replaces whatever has the
// name, except for a directory.
func WriteIn(root *os.Root, name string, data []byte, mode fs.FileMode) error {
	f, temp, err := createTemp(root, name)
	if err == nil {
		_, err = f.Write(data)
		if err = errors.Join(err, f.Chmod(mode.Perm()), f.Sync(), f.Close()); err == nil {
			err = root.Rename(temp, name)
		}
		if err != nil {
			_ = root.Remove(temp)
		} else {
			err = owndir.SyncDir(root, path.Dir(name))
		}
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", filepath.Join(root.Name(), name), err)
	}
	return nil
}

// Check returns the error that Create would return now. It leaves no file.
func Check(name string) error {
	f, err := Create(name, 0o600)
	if err != nil {
		return err
	}
	return f.Discard()
}

// Sync makes the bytes and the name of an existing file durable, whichever program wrote it.
func Sync(name string) error {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close(), SyncDir(filepath.Dir(name)))
}

// SyncDir makes the names in a directory durable.
func SyncDir(name string) error {
	d, err := os.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
