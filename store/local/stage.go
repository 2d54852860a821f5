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

// stagePrefix begins the names of stages. Neither casync gc nor desync verify and prune look into them, for
// no file in there is called like a chunk.
const (
	stagePrefix = hiddenPrefix + "stage-"
	lockName    = "lock"
)

// hiddenPrefix begins the names of all that is no object: stages, and what store/cachedir keeps of its own.
const hiddenPrefix = ".cairn-"

// stage is a private directory inside the bucket's, where objects wait for their names. The lock on a file
// in it says that its owner lives; the stages of dead owners are removed by whoever writes there next. Only
// the maker creates that file, and it is removed last: a stage without it is empty, new or nearly gone.
type stage struct {
	dir  string
	lock *os.File
	here *os.File // the stage, and
	root *os.File // the bucket's directory, both to name files in
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
		lost = err // a sweeping process was between our two steps, and removes it
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

// errTaken says that another process holds the lock of a stage.
var errTaken = errors.New("the stage is taken")

// own locks a stage; it is fs.ErrNotExist when the stage is gone. The lock is on a file, since NFS locks no
// directories.
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
	_, err := os.Stat(f.Name()) // it may have been removed between opening and locking
	return err
}

// sweep removes the stages whose owners are dead. What cannot be removed is in nobody's way, and is left to
// the next writer.
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
		return err // it is not ours: a symbolic link must not lead elsewhere
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

// remove removes a stage that the caller owns, and the lock last.
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

// EachName calls do for the names in an open directory until it fails. Do may remove some of them.
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

// flushing says whether a file is flushed when it is written.
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

// write writes data to a new file of a name in the stage. It is fs.ErrExist when the name is taken; after
// any other error there is no such file. The calls are the kernel's own, as there is one of each for every
// chunk of an image, and package os makes more of them.
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

// again repeats a call that a signal interrupted.
func again(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// into gives a staged file its name in the bucket. Directories are made when they turn out to be missing, so
// that most objects cost one system call; another process may remove an empty one at any time. With noReplace
// a name that is taken is fs.ErrExist.
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

// create gives a staged file a name below a directory, if nothing has it.
func (s *stage) create(staged string, dir int, name string) error {
	return linkOrRename(
		func() error { return unix.Linkat(s.fd(), staged, dir, name, 0) },
		func() error { return unix.Renameat2(s.fd(), staged, dir, name, unix.RENAME_NOREPLACE) })
}

// linkOrRename names a file by a link, which FAT does not have, or else by a rename that replaces nothing, which NFS does not
// have. A file system with neither is errors.ErrUnsupported.
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

// canNot reports whether a file system does not know a call.
func canNot(err error) bool {
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS)
}

// makeDirs makes the directories that name lies in, as far as they are missing.
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

// close removes the stage with everything in it.
func (s *stage) close() error {
	err := errors.Join(remove(s.dir), s.lock.Close())
	for _, dir := range []*os.File{s.here, s.root} {
		if dir != nil {
			err = errors.Join(err, dir.Close())
		}
	}
	return err
}
