// Package rotate reads small files that others replace while a program runs: keys, certificates, tokens. It
// knows nothing of what they hold.
package rotate

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// largest is how many bytes a file may have.
const largest = 1 << 20

// Reader reads files for a whole process. It keeps the text of a file that can be read only once, such as the pipe
// of a shell's <(...), for all who name that file. Regular files are read anew each time. The zero value is ready.
// Safe for concurrent use.
type Reader struct {
	mu     sync.Mutex // guards what follows, and lets one caller read a pipe at a time
	pipes  []pipe
	copies []*os.File // of pipes, in memory
}

// pipe is a file that was read to its end and cannot be read again.
type pipe struct {
	info fs.FileInfo
	text []byte
}

// Text returns the text of a file.
func (r *Reader) Text(path string) ([]byte, error) {
	info, err := statFile(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().IsRegular() {
		return readFile(path)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.pipes {
		if os.SameFile(p.info, info) {
			return p.text, nil
		}
	}
	text, err := readFile(path)
	if err == nil {
		r.pipes = append(r.pipes, pipe{info, text})
	}
	return text, err
}

// Path returns a path that others in this process can open as often as they like and read the text of the file
// there: the file's own, or, if it can be read only once, that of a copy in memory.
func (r *Reader) Path(path string) (string, error) {
	info, err := statFile(path)
	if err != nil || info.Mode().IsRegular() {
		return path, err
	}
	text, err := r.Text(path)
	if err != nil {
		return path, err
	}
	fd, err := unix.MemfdCreate("cairn", unix.MFD_CLOEXEC)
	if err != nil {
		return path, fmt.Errorf("copying %s into memory: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	if _, err := f.Write(text); err != nil {
		return path, fmt.Errorf("copying %s into memory: %w", path, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.copies = append(r.copies, f) // open for as long as the process runs
	return fmt.Sprintf("/proc/self/fd/%d", fd), nil
}

// Files are a few files and what they mean together. Safe for concurrent use.
type Files[T any] struct {
	// Changed, if set before the first Value, is called with nil when the files were read again, and once with each
	// reason why they could not be. It must not use the Files.
	Changed func(err error)

	reader *Reader
	paths  []string
	parse  func(texts [][]byte) (T, error)

	mu      sync.Mutex    // guards what follows, and lets one caller read the files at a time
	seen    []fs.FileInfo // of the files that value is made of, before they were read
	value   T
	trouble string // the last outcome's error
}

// Open reads the files with a reader; nil is one of their own. What parse makes of their texts is the value; its
// errors may be shown to anybody, so they quote no secret.
func Open[T any](r *Reader, parse func(texts [][]byte) (T, error), paths ...string) (*Files[T], error) {
	if r == nil {
		r = new(Reader)
	}
	f := &Files[T]{reader: r, paths: paths, parse: parse}
	if _, err := f.Reread(); err != nil {
		return nil, err
	}
	return f, nil
}

// Value returns what the files hold. They are read again when one of them was changed or replaced. Files that cannot
// be read, or make no sense together (the new certificate is there, its key is not yet), leave the value that they had
// before; it comes with the error.
func (f *Files[T]) Value() (T, error) { return f.update(false) }

// Reread is Value, but also reads files that look unchanged: a file may be rewritten within the resolution of
// its time.
func (f *Files[T]) Reread() (T, error) { return f.update(true) }

func (f *Files[T]) update(always bool) (T, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now, err := stat(f.paths)
	read := err == nil && (always || !slices.EqualFunc(f.seen, now, IsUnchanged))
	if read {
		err = f.read(now)
	}
	trouble := ""
	if err != nil {
		trouble = err.Error()
	}
	if f.Changed != nil && (err == nil && read || err != nil && trouble != f.trouble) {
		f.Changed(err)
	}
	f.trouble = trouble
	return f.value, err
}

// read records the files' state of before, so that a change during the read is noticed the next time.
func (f *Files[T]) read(before []fs.FileInfo) error {
	texts := make([][]byte, len(f.paths))
	for i, path := range f.paths {
		text, err := f.reader.Text(path)
		if err != nil {
			return err
		}
		texts[i] = text
	}
	value, err := f.parse(texts)
	if err == nil {
		f.value, f.seen = value, before
	}
	return err
}

func stat(paths []string) ([]fs.FileInfo, error) {
	infos := make([]fs.FileInfo, len(paths))
	for i, path := range paths {
		info, err := statFile(path)
		if err != nil {
			return nil, err
		}
		infos[i] = info
	}
	return infos, nil
}

func statFile(path string) (fs.FileInfo, error) {
	info, err := os.Stat(path)
	if err == nil && info.IsDir() {
		err = fmt.Errorf("%s is a directory", path)
	}
	return info, err
}

// IsUnchanged reports whether a file that was a looks the same as b. A pipe always does: its text is kept.
func IsUnchanged(a, b fs.FileInfo) bool {
	unchanged := a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
	return os.SameFile(a, b) && (unchanged || !b.Mode().IsRegular())
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, largest+1))
	if err == nil && len(text) > largest {
		err = fmt.Errorf("%s has more than %d bytes", path, largest)
	}
	return text, err
}
