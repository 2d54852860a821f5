// Package atomicfile writes a whole file or no file. The bytes go to a temporary file beside the final name, and the
// complete, flushed file is renamed. A replaced file passes on its owner, group, mode and extended attributes. The
// package knows nothing of the bytes, and never writes to devices.
package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// ErrNotRegular means that a file must not replace the object at the final name: a directory, a device, a pipe, a
// socket, or a symbolic link to one.
var ErrNotRegular = errors.New("not a regular file")

// File is a file without its final name. It is the *os.File of the temporary file, open for reading and
// writing. It may be written in any order and sized with Truncate. Only Commit gives it its name.
type File struct {
	*os.File
	name string      // the final name
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
	tmp, err := os.CreateTemp(filepath.Dir(name), temporaryPattern(name))
	if err != nil {
		return nil, fmt.Errorf("creating %s: %w", name, err)
	}
	return &File{File: tmp, name: name, mode: mode.Perm()}, nil
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

// temporaryPattern returns .NAME.*.tmp for os.CreateTemp, with NAME cut so that the result is a legal name.
func temporaryPattern(name string) string {
	base := filepath.Base(name)
	return "." + base[:min(len(base), maxBase)] + ".*.tmp"
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
	if err := f.rename(); err != nil {
		_ = errors.Join(os.Remove(f.File.Name()), f.File.Close())
		return fmt.Errorf("committing %s: %w", f.name, err)
	}
	if err := SyncDir(filepath.Dir(f.name)); err != nil {
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
	if err := os.Rename(f.File.Name(), f.name); err != nil {
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
	return f.File.Close()
}

// Discard abandons a file that was not committed, and removes its temporary file.
func (f *File) Discard() error {
	if f.done {
		return nil
	}
	f.done = true
	if err := errors.Join(os.Remove(f.File.Name()), f.File.Close()); err != nil {
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
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close(), SyncDir(filepath.Dir(name)))
}

// SyncDir makes the names in a directory durable.
func SyncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
