// Package rotate reads small files that others replace while a program runs: keys, certificates, tokens. It
// knows nothing of what they hold.
package rotate

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
)

// largest is how many bytes a file may have.
const largest = 1 << 20

// Files are a few files and what they mean together. Safe for concurrent use.
type Files[T any] struct {
	paths []string
	parse func(texts [][]byte) (T, error)

	mu    sync.Mutex    // guards what follows, and lets one caller read the files at a time
	seen  []fs.FileInfo // of the files that value is made of, before they were read
	value T
	pipes map[string][]byte // what came out of those of the files that can be read once only
}

// Open reads the files. What parse makes of their texts is the value; its errors may be shown to anybody, so
// they quote no secret.
func Open[T any](parse func(texts [][]byte) (T, error), paths ...string) (*Files[T], error) {
	f := &Files[T]{paths: paths, parse: parse, pipes: map[string][]byte{}}
	if _, err := f.Reread(); err != nil {
		return nil, err
	}
	return f, nil
}

// Value is what the files hold. They are read again when one of them was changed or replaced. Files that
// cannot be read, or make no sense together (the new certificate is there, its key is not yet), leave the value
// that they had before; it comes with the error.
func (f *Files[T]) Value() (T, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now, err := stat(f.paths)
	if err != nil {
		return f.value, err
	}
	if same(f.seen, now) {
		return f.value, nil
	}
	return f.read(now)
}

// Reread is Value, but also reads files that look unchanged: a file may be rewritten within the resolution of
// its time.
func (f *Files[T]) Reread() (T, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now, err := stat(f.paths)
	if err != nil {
		return f.value, err
	}
	return f.read(now)
}

// read takes what the files were before as seen, so that a change meanwhile is noticed the next time.
func (f *Files[T]) read(before []fs.FileInfo) (T, error) {
	texts := make([][]byte, len(f.paths))
	for i, path := range f.paths {
		text, err := f.text(path, before[i].Mode()&fs.ModeNamedPipe != 0)
		if err != nil {
			return f.value, err
		}
		texts[i] = text
	}
	value, err := f.parse(texts)
	if err != nil {
		return f.value, err
	}
	f.value, f.seen = value, before
	return value, nil
}

// text is what a file holds; a pipe, such as a shell's <(...), gave it once and for all.
func (f *Files[T]) text(path string, pipe bool) ([]byte, error) {
	if text, ok := f.pipes[path]; ok && pipe {
		return text, nil
	}
	text, err := readFile(path)
	if err == nil && pipe {
		f.pipes[path] = text
	}
	return text, err
}

func stat(paths []string) ([]fs.FileInfo, error) {
	infos := make([]fs.FileInfo, len(paths))
	for i, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		if info.IsDir() {
			return nil, fmt.Errorf("%s is a directory", path)
		}
		infos[i] = info
	}
	return infos, nil
}

func same(a, b []fs.FileInfo) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !os.SameFile(a[i], b[i]) || a[i].Size() != b[i].Size() || !a[i].ModTime().Equal(b[i].ModTime()) {
			return false
		}
	}
	return true
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
