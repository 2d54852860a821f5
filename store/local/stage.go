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
	dir      string
	lock     *os.File
	self     *os.File // the stage, for the *at system calls
	root     *os.File // the bucket's directory, for the same calls
	nextTemp atomic.Uint64
}

func (b *Bucket) newStage() (*stage, error) {
	b.deadRemoved.Do(b.removeDeadStages)
	var lost error
	for range 10 {
		dir, err := os.MkdirTemp(b.root, stagePrefix)
		if err != nil {
			return nil, fmt.Errorf("writing to %s: %w", b.root, deniedError(err))
		}
		lock, err := lockStage(dir, os.O_CREATE)
		if err == nil {
			return openStage(b.root, dir, lock)
		}
		if !errors.Is(err, errTaken) && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("writing to %s: %w", b.root, errors.Join(err, removeStage(dir)))
		}
		lost = err // another process found the stage before it was locked, and removes it
	}
	return nil, fmt.Errorf("writing to %s: %w", b.root, lost)
}

func openStage(root, dir string, lock *os.File) (*stage, error) {
	s := &stage{dir: dir, lock: lock}
	var err error
	if s.self, err = os.Open(dir); err == nil {
		s.root, err = os.Open(root)
	}
	if err != nil {
		return nil, fmt.Errorf("writing to %s: %w", root, errors.Join(deniedError(err), s.close()))
	}
	return s, nil
}

// errTaken reports that another process holds the lock of a stage.
var errTaken = errors.New("another process holds the stage")

// lockStage locks a stage and returns the lock file. It returns fs.ErrNotExist if the stage is
// gone. It locks a file because NFS cannot lock directories.
func lockStage(dir string, create int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|create, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lockFile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func lockFile(f *os.File) error {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if err == unix.EWOULDBLOCK {
			return errTaken
		}
		return &fs.PathError{Op: "lock", Path: f.Name(), Err: err}
	}
	_, err := os.Stat(f.Name()) // the file may have been removed between opening and locking
	return err
}

// removeDeadStages removes the stages of dead owners. It ignores errors: a stage that stays does no
// harm, and the next writer tries again.
func (b *Bucket) removeDeadStages() {
	_ = eachName(b.root, func(name string) error {
		if strings.HasPrefix(name, stagePrefix) {
			_ = removeIfDead(filepath.Join(b.root, name))
		}
		return nil
	})
}

// removeIfDead removes a stage, or returns errTaken if its owner is alive.
func removeIfDead(dir string) error {
	if info, err := os.Lstat(dir); err != nil || !info.IsDir() {
		return err // not a stage; do not follow a symbolic link out of the bucket
	}
	lock, err := lockStage(dir, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return removeIfExists(dir)
	}
	if err != nil {
		return err
	}
	return errors.Join(removeStage(dir), lock.Close())
}

// removeStage removes a stage that the caller has locked. It removes the lock file last.
func removeStage(dir string) error {
	err := eachName(dir, func(name string) error {
		if name == lockName {
			return nil
		}
		return os.Remove(filepath.Join(dir, name))
	})
	if err != nil {
		return err
	}
	return errors.Join(removeIfExists(filepath.Join(dir, lockName)), removeIfExists(dir))
}

func removeIfExists(path string) error {
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

// addTemp writes data to a new file and returns its name in the stage.
func (s *stage) addTemp(data []byte, mode fs.FileMode, f flushing) (string, error) {
	name := strconv.FormatUint(s.nextTemp.Add(1), 10) + ".tmp"
	return name, s.writeFile(name, data, mode, f)
}

// writeFile writes data to a new file with the given name in the stage. It returns fs.ErrExist when
// the name is taken; after any other error no such file is left. It uses system calls directly: it
// runs once for every chunk of an image, and package os makes more calls for each file.
func (s *stage) writeFile(name string, data []byte, mode fs.FileMode, f flushing) error {
	flags := unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_CLOEXEC
	fd, err := retryEINTR(func() (int, error) { return unix.Openat(s.dirFD(), name, flags, uint32(mode.Perm())) })
	if err != nil {
		return &fs.PathError{Op: "create", Path: filepath.Join(s.dir, name), Err: err}
	}
	err = writeAll(fd, data)
	if err == nil && f == flushed {
		_, err = retryEINTR(func() (int, error) { return 0, unix.Fsync(fd) })
	}
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return errors.Join(&fs.PathError{Op: "write", Path: filepath.Join(s.dir, name), Err: err}, unix.Unlinkat(s.dirFD(), name, 0))
	}
	return nil
}

func (s *stage) dirFD() int { return int(s.self.Fd()) }

func writeAll(fd int, data []byte) error {
	for len(data) > 0 {
		n, err := retryEINTR(func() (int, error) { return unix.Write(fd, data) })
		if err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// retryEINTR repeats a system call that a signal interrupted (EINTR).
func retryEINTR(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// publish gives a staged file its name in the bucket. It makes directories only after the first
// attempt fails, so most objects cost one system call. It tries several times, because another
// process may remove an empty directory at any time. With noReplace it returns fs.ErrExist if the
// name is taken.
func (s *stage) publish(staged, name string, noReplace bool) error {
	move := func() error { return unix.Renameat(s.dirFD(), staged, int(s.root.Fd()), name) }
	if noReplace {
		move = func() error { return s.linkNew(staged, int(s.root.Fd()), name) }
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

// linkNew gives a staged file a name below a directory, or returns fs.ErrExist if the name is
// taken.
func (s *stage) linkNew(staged string, dir int, name string) error {
	return linkOrRename(
		func() error { return unix.Linkat(s.dirFD(), staged, dir, name, 0) },
		func() error { return unix.Renameat2(s.dirFD(), staged, dir, name, unix.RENAME_NOREPLACE) })
}

// linkOrRename calls link, and if the file system does not support it, rename. FAT has no links,
// and NFS no rename without replacing. If neither is supported, the error is errors.ErrUnsupported.
func linkOrRename(link, rename func() error) error {
	err := link()
	if !isUnsupported(err) {
		return err
	}
	renameErr := rename()
	if isUnsupported(renameErr) || errors.Is(renameErr, unix.EINVAL) {
		return fmt.Errorf("its file system cannot create a file without replacing one: %w (%w)", errors.ErrUnsupported, err)
	}
	return renameErr
}

// isUnsupported reports whether err means that the file system does not support the call.
func isUnsupported(err error) bool {
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
	err := errors.Join(removeStage(s.dir), s.lock.Close())
	for _, dir := range []*os.File{s.self, s.root} {
		if dir != nil {
			err = errors.Join(err, dir.Close())
		}
	}
	return err
}
