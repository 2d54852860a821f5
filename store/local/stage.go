package local

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// stagePrefix begins the names of stages. casync gc and desync verify and prune ignore the files in
// stages, because none of them is named like a chunk.
const (
	stagePrefix = hiddenPrefix + "stage-"
	lockName    = "lock"
)

// hiddenPrefix begins the names of all files that are not objects: stages, and store/cachedir's own
// files.
const hiddenPrefix = ".cairn-"

// stage is a private directory inside the bucket's directory, for objects without a final name. Its
// owner holds a lock on a file in it. The next writer in the bucket removes the stages of dead
// owners. Only the owner creates the lock file, and it is removed last: a stage without it is
// empty, new or nearly removed.
type stage struct {
	dir  string
	lock *os.File
	here *os.File // the stage, for the *at system calls
	root *os.File // the bucket's directory, for the same calls
	next atomic.Uint64
}

func (b *Bucket) newStage() (*stage, error) {
	b.swept.Do(b.sweep)
	var lost error
	for range 10 {
		dir, err := os.MkdirTemp(b.root, stagePrefix)
		if err != nil {
			return nil, fmt.Errorf("writing to %s: %w", b.root, denied(err))
		}
		lock, err := own(dir, os.O_CREATE)
		if err == nil {
			return openStage(b.root, dir, lock)
		}
		if !errors.Is(err, errTaken) && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("writing to %s: %w", b.root, errors.Join(err, remove(dir)))
		}
		lost = err // another process's sweep found the stage before it was locked, and removes it
	}
	return nil, fmt.Errorf("writing to %s: %w", b.root, lost)
}

func openStage(root, dir string, lock *os.File) (*stage, error) {
	s := &stage{dir: dir, lock: lock}
	var err error
	if s.here, err = os.Open(dir); err == nil {
		s.root, err = os.Open(root)
	}
	if err != nil {
		return nil, fmt.Errorf("writing to %s: %w", root, errors.Join(denied(err), s.close()))
	}
	return s, nil
}

// errTaken reports that another process holds the lock of a stage.
var errTaken = errors.New("the stage is taken")

// own locks a stage and returns the lock file. It returns fs.ErrNotExist if the stage is gone. It
// locks a file because NFS cannot lock directories.
func own(dir string, create int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|create, 0o600)
	if err != nil {
		return nil, err
	}
	if err := ownFile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func ownFile(f *os.File) error {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if err == unix.EWOULDBLOCK {
			return errTaken
		}
		return &fs.PathError{Op: "lock", Path: f.Name(), Err: err}
	}
	_, err := os.Stat(f.Name()) // the file may have been removed between opening and locking
	return err
}

// sweep removes the stages of dead owners. It ignores errors: a stage that stays does no harm, and
// the next writer tries again.
func (b *Bucket) sweep() {
	_ = eachName(b.root, func(name string) error {
		if strings.HasPrefix(name, stagePrefix) {
			_ = bury(filepath.Join(b.root, name))
		}
		return nil
	})
}

func bury(dir string) error {
	if info, err := os.Lstat(dir); err != nil || !info.IsDir() {
		return err // not a stage; do not follow a symbolic link out of the bucket
	}
	lock, err := own(dir, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return removeAny(dir)
	}
	if err != nil {
		return err
	}
	return errors.Join(remove(dir), lock.Close())
}

// remove removes a stage that the caller has locked. It removes the lock file last.
func remove(dir string) error {
	err := eachName(dir, func(name string) error {
		if name == lockName {
			return nil
		}
		return os.Remove(filepath.Join(dir, name))
	})
	if err != nil {
		return err
	}
	return errors.Join(removeAny(filepath.Join(dir, lockName)), removeAny(dir))
}

func removeAny(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func eachName(dir string, do func(name string) error) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return EachName(d, do)
}

// EachName calls do for each name in an open directory, until do returns an error. do may remove
// files from the directory.
func EachName(d *os.File, do func(name string) error) error {
	for {
		names, err := d.Readdirnames(1024)
		for _, name := range names {
			if err := do(name); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// flushing selects whether a file is flushed after it is written.
type flushing bool

const (
	unflushed flushing = false
	flushed   flushing = true
)

// add writes data to a new file and returns its name in the stage.
func (s *stage) add(data []byte, mode fs.FileMode, f flushing) (string, error) {
	name := strconv.FormatUint(s.next.Add(1), 10) + ".tmp"
	return name, s.write(name, data, mode, f)
}

// write writes data to a new file with the given name in the stage. It returns fs.ErrExist when the
// name is taken; after any other error no such file is left. It uses system calls directly: it runs
// once for every chunk of an image, and package os makes more calls for each file.
func (s *stage) write(name string, data []byte, mode fs.FileMode, f flushing) error {
	flags := unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_CLOEXEC
	fd, err := again(func() (int, error) { return unix.Openat(s.fd(), name, flags, uint32(mode.Perm())) })
	if err != nil {
		return &fs.PathError{Op: "create", Path: filepath.Join(s.dir, name), Err: err}
	}
	err = writeAll(fd, data)
	if err == nil && f == flushed {
		_, err = again(func() (int, error) { return 0, unix.Fsync(fd) })
	}
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return errors.Join(&fs.PathError{Op: "write", Path: filepath.Join(s.dir, name), Err: err}, s.discard(name))
	}
	return nil
}

func (s *stage) fd() int { return int(s.here.Fd()) }

func (s *stage) discard(name string) error { return unix.Unlinkat(s.fd(), name, 0) }

func writeAll(fd int, data []byte) error {
	for len(data) > 0 {
		n, err := again(func() (int, error) { return unix.Write(fd, data) })
		if err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// again repeats a system call that a signal interrupted (EINTR).
func again(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// into gives a staged file its name in the bucket. It makes directories only after the first
// attempt fails, so most objects cost one system call. It tries several times, because another
// process may remove an empty directory at any time. With noReplace it returns fs.ErrExist if the
// name is taken.
func (s *stage) into(staged, name string, noReplace bool) error {
	move := func() error { return unix.Renameat(s.fd(), staged, int(s.root.Fd()), name) }
	if noReplace {
		move = func() error { return s.create(staged, int(s.root.Fd()), name) }
	}
	err := move()
	for tries := 0; errors.Is(err, unix.ENOENT) && tries < 3; tries++ {
		if err := s.makeDirs(name); err != nil {
			return err
		}
		err = move()
	}
	return err
}

// create gives a staged file a name below a directory, or returns fs.ErrExist if the name is taken.
func (s *stage) create(staged string, dir int, name string) error {
	return linkOrRename(
		func() error { return unix.Linkat(s.fd(), staged, dir, name, 0) },
		func() error { return unix.Renameat2(s.fd(), staged, dir, name, unix.RENAME_NOREPLACE) })
}

// linkOrRename calls link, and if the file system does not support it, rename. FAT has no links,
// and NFS no rename without replacing. If neither is supported, the error is errors.ErrUnsupported.
func linkOrRename(link, rename func() error) error {
	err := link()
	if !canNot(err) {
		return err
	}
	renameErr := rename()
	if canNot(renameErr) || errors.Is(renameErr, unix.EINVAL) {
		return fmt.Errorf("its file system cannot create a file without replacing one: %w (%w)", errors.ErrUnsupported, err)
	}
	return renameErr
}

// canNot reports whether err means that the file system does not support the call.
func canNot(err error) bool {
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS)
}

// makeDirs makes the missing directories above name.
func (s *stage) makeDirs(name string) error {
	for i, c := range name {
		if c != '/' {
			continue
		}
		if err := unix.Mkdirat(int(s.root.Fd()), name[:i], 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	return nil
}

// close removes the stage and its files, and closes its descriptors.
func (s *stage) close() error {
	err := errors.Join(remove(s.dir), s.lock.Close())
	for _, dir := range []*os.File{s.here, s.root} {
		if dir != nil {
			err = errors.Join(err, dir.Close())
		}
	}
	return err
}
