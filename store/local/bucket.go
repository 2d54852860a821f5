// Package local implements a bucket in a directory. It knows nothing of digests: the same code
// keeps a casync chunk store and the directory of indexes. It needs Linux (syncfs).
package local

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"cairn/internal/atomicfile"
	"cairn/store"
)

// Options configure the objects that a Bucket writes.
type Options struct {
	// Mode holds the permissions of objects, less the umask. 0 means 0444, the mode of casync's
	// chunks.
	Mode fs.FileMode
}

// Bucket keeps each object as a file of its name below a directory. It is safe for concurrent use,
// also by other buckets and processes in the same directory.
type Bucket struct {
	root        string
	options     Options
	deadRemoved sync.Once // removes the stages of dead writers, before the first write
}

var (
	_ store.Bucket  = (*Bucket)(nil)
	_ store.Batcher = (*Bucket)(nil)
	_ store.Lister  = (*Bucket)(nil)
	_ store.Creator = (*Bucket)(nil)

	_ store.RangeStreamer = (*Bucket)(nil)
	_ store.CreateChecker = (*Bucket)(nil)
)

// Open returns a bucket in an existing directory, or store.ErrNotFound if the directory does not
// exist. If the directory disappears later, the bucket is empty.
func Open(dir string, o Options) (*Bucket, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return nil, readError(dir, err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("%s is not a directory", dir)
	}
	return At(dir, o), nil
}

// Create returns a bucket in a directory, which it makes durably, with its parents, if it does not
// exist. It does not make directories where the kernel keeps devices: that error is fs.ErrNotExist.
func Create(dir string, o Options) (*Bucket, error) {
	path, err := atomicfile.Resolve(filepath.Clean(dir))
	if err == nil {
		err = makeDurable(path)
	}
	if err != nil {
		return nil, deniedError(err)
	}
	return Open(dir, o)
}

// At returns a bucket in a directory that need not exist. A missing directory is like an empty one.
func At(dir string, o Options) *Bucket {
	o.Mode = cmp.Or(o.Mode, 0o444)
	return &Bucket{root: dir, options: o}
}

// String implements store.Reader. It returns the directory.
func (b *Bucket) String() string { return b.root }

func (b *Bucket) path(name string) string { return filepath.Join(b.root, filepath.FromSlash(name)) }

// Read implements store.Reader.
func (b *Bucket) Read(ctx context.Context, name string, dst []byte, limit int64) ([]byte, error) {
	if err := checkCall(ctx, name); err != nil {
		return nil, err
	}
	path := b.path(name)
	// O_NONBLOCK: opening must not block, even if the name is a pipe.
	fd, err := retryEINTR(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, readError(path, err)
	}
	defer unix.Close(fd)
	return readAll(fd, path, dst, limit)
}

// Stream implements store.Streamer.
func (b *Bucket) Stream(ctx context.Context, name string, limit int64, use func(io.Reader) error) error {
	f, size, err := b.openFile(ctx, name)
	if err != nil {
		return err
	}
	defer f.Close()
	if size > limit {
		return fmt.Errorf("%s has %d bytes: %w (%d)", f.Name(), size, store.ErrTooLarge, limit)
	}
	return use(&wholeReader{io.LimitedReader{R: f, N: size}})
}

// StreamRange implements store.RangeStreamer.
func (b *Bucket) StreamRange(
	ctx context.Context, name string, off, n int64, use func(store.Part, io.Reader) error,
) error {
	if err := store.CheckRange(off, n); err != nil {
		return err
	}
	f, size, err := b.openFile(ctx, name)
	if err != nil {
		return err
	}
	defer f.Close()
	if off >= size {
		return fmt.Errorf("%s has %d bytes: %w", f.Name(), size, store.ErrRange)
	}
	if _, err := f.Seek(off, io.SeekStart); err != nil {
		return readError(f.Name(), err)
	}
	return use(store.Part{Offset: off, Size: size}, &wholeReader{io.LimitedReader{R: f, N: min(n, size-off)}})
}

// openFile opens an object for reading and returns its size.
func (b *Bucket) openFile(ctx context.Context, name string) (f *os.File, size int64, err error) {
	if err := checkCall(ctx, name); err != nil {
		return nil, 0, err
	}
	path := b.path(name)
	f, err = os.OpenFile(path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, readError(path, err)
	}
	if size, err = fileSize(f.Stat()); err != nil {
		_ = f.Close()
		return nil, 0, readError(path, err)
	}
	return f, size, nil
}

// wholeReader reads bytes of a file and returns io.ErrUnexpectedEOF if the file ends before them.
type wholeReader struct{ io.LimitedReader }

// Read implements io.Reader.
func (w *wholeReader) Read(p []byte) (int, error) {
	n, err := w.LimitedReader.Read(p)
	if errors.Is(err, io.EOF) && w.N > 0 {
		return n, io.ErrUnexpectedEOF
	}
	return n, err
}

// readAll appends the content of the open file to dst. It uses system calls directly, as
// stage.writeFile does.
func readAll(fd int, path string, dst []byte, limit int64) ([]byte, error) {
	var info unix.Stat_t
	if _, err := retryEINTR(func() (int, error) { return 0, unix.Fstat(fd, &info) }); err != nil {
		return nil, readError(path, err)
	}
	switch {
	case info.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, fmt.Errorf("reading %s: %w", path, errNotRegular)
	case info.Size > min(limit, math.MaxInt):
		return nil, fmt.Errorf("%s has %d bytes: %w (%d)", path, info.Size, store.ErrTooLarge, limit)
	}
	start, end := len(dst), len(dst)+int(info.Size)
	dst = slices.Grow(dst, end-start)[:end]
	for start < end {
		n, err := retryEINTR(func() (int, error) { return unix.Read(fd, dst[start:]) })
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, readError(path, err)
		}
		start += n
	}
	return dst, nil
}

// Stat implements store.Reader.
func (b *Bucket) Stat(ctx context.Context, name string) (int64, error) {
	if err := checkCall(ctx, name); err != nil {
		return 0, err
	}
	size, err := fileSize(os.Stat(b.path(name)))
	if err != nil {
		return 0, readError(b.path(name), err)
	}
	return size, nil
}

var errNotRegular = errors.New("not a regular file")

func fileSize(info fs.FileInfo, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, errNotRegular
	}
	return info.Size(), nil
}

// Write implements store.Bucket. It flushes the object, then its name and the directories above it.
func (b *Bucket) Write(ctx context.Context, name string, data []byte) error {
	return b.writeAlone(ctx, name, data, false)
}

// Create implements store.Creator. It flushes as Write does.
func (b *Bucket) Create(ctx context.Context, name string, data []byte) error {
	err := b.writeAlone(ctx, name, data, true)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s: %w", b.path(name), store.ErrExists)
	}
	return err
}

// CheckCreate implements store.CreateChecker. It creates a file in a stage.
func (b *Bucket) CheckCreate(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s, err := b.newStage()
	if err != nil {
		return err
	}
	staged, err := s.addTemp(nil, b.options.Mode, unflushed)
	if err == nil {
		err = s.linkNew(staged, s.dirFD(), "created"+tempSuffix)
	}
	if err != nil {
		err = fmt.Errorf("writing to %s: %w", b.root, deniedError(err))
	}
	return errors.Join(err, s.close())
}

func (b *Bucket) writeAlone(ctx context.Context, name string, data []byte, noReplace bool) error {
	if err := checkCall(ctx, name); err != nil {
		return err
	}
	s, err := b.newStage()
	if err != nil {
		return err
	}
	err = b.writeThrough(ctx, s, name, data, noReplace)
	return errors.Join(err, s.close())
}

func (b *Bucket) writeThrough(ctx context.Context, s *stage, name string, data []byte, noReplace bool) error {
	temp, err := s.addTemp(data, b.options.Mode, flushed)
	if err != nil {
		return b.writeError(name, err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.publish(temp, name, noReplace); err != nil {
		return b.writeError(name, err)
	}
	for dir := path.Dir(name); ; dir = path.Dir(dir) {
		if err := syncBelow(s.root, dir); err != nil {
			return b.writeError(name, err)
		}
		if dir == "." {
			return nil
		}
	}
}

func (b *Bucket) writeError(name string, err error) error {
	return fmt.Errorf("writing %s: %w", b.path(name), deniedError(err))
}

func checkCall(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return store.CheckName(name)
}

// readError converts an error from opening or reading a file to the errors that store.Reader
// documents.
func readError(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", path, store.ErrNotFound)
	}
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		err = p.Err // the message below has the path
	}
	return fmt.Errorf("reading %s: %w", path, deniedError(err))
}

func deniedError(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: %w", store.ErrDenied, err)
	}
	return err
}

// makeDurable makes a directory and its missing parents, and flushes the name of each one that it
// made.
func makeDurable(dir string) error {
	err := os.Mkdir(dir, 0o777)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeDurable(filepath.Dir(dir)); err != nil {
			return err
		}
		err = os.Mkdir(dir, 0o777)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(dir))
}
