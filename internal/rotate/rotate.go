// Package rotate reads small files that other programs replace during this one's lifetime: keys,
// certificates, tokens. It knows nothing of their content.
package rotate

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"cairn/internal/openfile"
)

// largest limits the size of a file, in bytes.
const largest = 1 << 20

// Reader reads files for a whole process. It keeps the text of a file that can be read only once,
// such as the pipe of a shell's <(...), for all users of that file. It reads regular files anew
// each time. The zero value is ready to use. Reader is safe for concurrent use.
type Reader struct {
	mu     sync.Mutex // guards the fields below, and serializes reads of pipes
	pipes  []pipe
	copies []*os.File // copies of pipes in memory, kept open
}

// errSpecial means that another kind of file has the name of a file by now.
var errSpecial = errors.New("not a regular file any more")

// pipe is a file that was read to its end and cannot be read again.
type pipe struct {
	info fs.FileInfo
	text []byte
}

// Text returns the text of a file.
func (r *Reader) Text(path string) ([]byte, error) {
	closeToChildren(path)
	info, err := statFile(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().IsRegular() {
		return readFile(path, unix.O_NONBLOCK) // a FIFO may have taken the file's place
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.pipes {
		if os.SameFile(p.info, info) {
			return p.text, nil
		}
	}
	text, err := readFile(path, 0)
	if err == nil {
		r.pipes = append(r.pipes, pipe{info, text})
	}
	return text, err
}

// closeToChildren keeps a file that was open when the process began, such as /dev/fd/3, from child programs, because
// it may contain secrets.
func closeToChildren(path string) {
	if fd, is := openfile.Descriptor(path); is && fd > 2 {
		unix.CloseOnExec(fd)
	}
}

// Path returns a path from which other code in this process can read the text of the file
// repeatedly. It is the file's own path or, for a file that can be read only once, the path of a
// copy in memory.
func (r *Reader) Path(path string) (string, error) {
	closeToChildren(path)
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
	r.copies = append(r.copies, f) // keeps f open until the process ends
	return fmt.Sprintf("/proc/self/fd/%d", fd), nil
}

// Files holds a few files and the value parsed from their texts. It is safe for concurrent use.
type Files[T any] struct {
	// Changed, if set before the first Value, is called with nil after the files were read again,
	// and once with each new error. It must not use the Files.
	Changed func(err error)

	reader *Reader
	paths  []string
	parse  func(texts [][]byte) (T, error)

	mu      sync.Mutex    // guards the fields below, and serializes reads of the files
	seen    []fs.FileInfo // of the files behind value, from before they were read
	value   T
	trouble string // the text of the last error, or ""
}

// Open reads the files with r and parses their texts with parse; a nil r means a new Reader. The
// errors of parse may be logged, so they must not quote secrets.
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

// Value returns the value of the files. It reads them again if one of them was changed or replaced.
// If they cannot be read, or do not fit together (a new certificate without its new key), it
// returns the previous value with the error.
func (f *Files[T]) Value() (T, error) { return f.readIfChanged(false) }

// Reread is Value, but always reads the files. A file may be rewritten within the resolution of its
// modification time, and then looks unchanged.
func (f *Files[T]) Reread() (T, error) { return f.readIfChanged(true) }

func (f *Files[T]) readIfChanged(always bool) (T, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now, err := statFiles(f.paths)
	read := err == nil && (always || !slices.EqualFunc(f.seen, now, IsUnchanged))
	if read {
		err = f.readAndParse(now)
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

// readAndParse reads and parses the files. It records their state from before, so that the next call
// notices a change during the read.
func (f *Files[T]) readAndParse(before []fs.FileInfo) error {
	texts := make([][]byte, len(f.paths))
	for i, path := range f.paths {
		if f.seen != nil && !before[i].Mode().IsRegular() && !IsUnchanged(f.seen[i], before[i]) {
			return fmt.Errorf("%s is %w", path, errSpecial) // a read could block all users of the files
		}
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

func statFiles(paths []string) ([]fs.FileInfo, error) {
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

// IsUnchanged reports whether a file with the earlier state a looks unchanged in state b. The same
// pipe always does, since its text is kept.
func IsUnchanged(a, b fs.FileInfo) bool {
	unchanged := a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
	return os.SameFile(a, b) && a.Mode().Type() == b.Mode().Type() && (unchanged || !b.Mode().IsRegular())
}

// readFile returns the text of a file, or of a regular file only if flags has O_NONBLOCK.
func readFile(path string, flags int) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|flags, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || flags&unix.O_NONBLOCK != 0 && !info.Mode().IsRegular() {
		return nil, cmp.Or(err, fmt.Errorf("%s is %w", path, errSpecial))
	}
	text, err := io.ReadAll(io.LimitReader(f, largest+1))
	if err == nil && len(text) > largest {
		err = fmt.Errorf("%s has more than %d bytes", path, largest)
	}
	return text, err
}
