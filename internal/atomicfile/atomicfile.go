// Package atomicfile writes a whole file or no file: the bytes go to a temporary beside the final name, which
// is given only to what is complete and flushed. A file that is replaced passes on its owner, group, mode and
// extended attributes. The package knows nothing of what the bytes are, and never writes to devices.
package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// ErrNotRegular says that the final name belongs to something that a file must not replace: a directory, a
// device, a pipe, a socket, or a symbolic link to one.
var ErrNotRegular = errors.New("not a regular file")

// File is a file that has no name yet. It is the *os.File of the temporary, open for reading and writing, and
// may be filled in any order and sized with Truncate. Only Commit gives it its name.
type File struct {
	*os.File
	name string      // the final one
	mode fs.FileMode // of a new file
	keep bool        // the temporary outlives Close
	done bool        // committed or closed
	lost error       // see Lost
}

// Create starts the file that will be called name, in its directory. Symbolic links are followed as Resolve does:
// the link stays. The caller must Close.
func Create(name string, mode fs.FileMode) (*File, error) {
	name, err := place(name)
	if err != nil {
		return nil, fmt.Errorf("creating %s: %w", name, err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(name), temporaryPattern(name))
	if err != nil {
		return nil, fmt.Errorf("creating %s: %w", name, err)
	}
	return &File{File: tmp, name: name, mode: mode.Perm()}, nil
}

// place is where a file of this name is to be made. With an error it is the name.
func place(name string) (string, error) {
	if _, err := replaceable(name); err != nil {
		return name, err
	}
	path, err := Resolve(name)
	if err != nil {
		return name, err
	}
	return path, nil
}

// replaceable returns what name stands for so far, if a file may replace it, or nil if that is nothing.
func replaceable(name string) (fs.FileInfo, error) {
	info, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && !info.Mode().IsRegular() {
		err = ErrNotRegular
	}
	return info, err
}

// longest is how much of a name, in bytes, is in its temporary's.
const longest = 200

// temporaryPattern is .NAME.*.tmp for os.CreateTemp, cut so that the longest legal name still has a
// temporary.
func temporaryPattern(name string) string {
	base := filepath.Base(name)
	return "." + base[:min(len(base), longest)] + ".*.tmp"
}

// Commit flushes the bytes, sets the mode exactly (no umask), closes the file and gives it its name,
// replacing a file of that name; then it flushes the name. The replaced file's owner, group, mode and extended
// attributes are the new one's, but for those that Lost returns. After an error before the renaming nothing is
// left; an error of the last flush leaves the new file, whose name may not outlive a power cut.
func (f *File) Commit() error {
	if f.done {
		return fmt.Errorf("committing %s: %w", f.name, fs.ErrClosed)
	}
	f.done = true
	if err := f.publish(); err != nil {
		_ = errors.Join(os.Remove(f.File.Name()), f.File.Close())
		return fmt.Errorf("committing %s: %w", f.name, err)
	}
	if err := SyncDir(filepath.Dir(f.name)); err != nil {
		return fmt.Errorf("flushing the name %s: %w", f.name, err)
	}
	return nil
}

// publish renames before it closes, since closing ends the claim on a temporary that can be resumed. All that
// closing could complain of, the flush has said.
func (f *File) publish() error {
	old, err := replaceable(f.name)
	if err != nil {
		return err
	}
	if old == nil {
		err = f.File.Chmod(f.mode)
	} else {
		f.lost = inherit(f.File, f.name, old)
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

// Lost lists the attributes of the replaced file that Commit could not give to the new one, mostly for lack of
// privilege. It is nil if there are none.
func (f *File) Lost() error { return f.lost }

// Close gives up a file that was not committed, and removes its temporary unless that was made to be
// resumed; after Commit or Close it does nothing. So it can be deferred.
func (f *File) Close() error {
	if f.done || !f.keep {
		return f.Discard()
	}
	f.done = true
	return f.File.Close()
}

// Discard gives up a file that was not committed, and removes its temporary.
func (f *File) Discard() error {
	if f.done {
		return nil
	}
	f.done = true
	if err := errors.Join(os.Remove(f.File.Name()), f.File.Close()); err != nil {
		return fmt.Errorf("giving up %s: %w", f.name, err)
	}
	return nil
}

// Write makes data the whole content of the file called name, durably. What it cannot keep of a file that it replaces
// is not told.
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

// Check reports why Create would fail now. It leaves nothing.
func Check(name string) error {
	f, err := Create(name, 0o600)
	if err != nil {
		return err
	}
	return f.Discard()
}

// Sync makes a file that is there durable, its bytes and its name, whoever wrote it.
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
