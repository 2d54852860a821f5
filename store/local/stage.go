package local

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
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
	tempSuffix  = ".tmp"
)

// hiddenPrefix begins the names of all files that are not objects: stages, and store/cachedir's own
// files.
const hiddenPrefix = ".cairn-"

// stage is a private directory inside the bucket's directory, for objects without a final name. Its
// owner holds a lock on a file in it. The next writer in the bucket removes the stages of dead
// owners. Only the owner creates the lock file, and it is removed last: a stage without it is
// empty, new or nearly removed.
type stage struct {
	name     string   // in the bucket's directory
	root     *os.File // the bucket's directory; the stage closes it
	self     *os.File // the stage
	lock     *os.File
	nextTemp atomic.Uint64
}

func (b *Bucket) newStage() (*stage, error) {
	root, err := b.openRoot()
	if err != nil {
		return nil, fmt.Errorf("writing to %s: %w", b.root, deniedError(err))
	}
	b.deadRemoved.Do(func() { removeDeadStages(root) })
	for range 10 {
		var s *stage
		if s, err = makeStage(root); err == nil {
			return s, nil
		}
		if !errors.Is(err, errTaken) && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist) {
			break
		}
		// Another process found the stage before it was locked, and removes it.
	}
	return nil, fmt.Errorf("writing to %s: %w", b.root, errors.Join(deniedError(err), root.Close()))
}

func makeStage(root *os.File) (*stage, error) {
	s := &stage{root: root, name: stagePrefix + strconv.FormatUint(rand.Uint64(), 36)}
	if err := unix.Mkdirat(int(root.Fd()), s.name, 0o700); err != nil {
		return nil, &fs.PathError{Op: "mkdir", Path: filepath.Join(root.Name(), s.name), Err: err}
	}
	var err error
	if s.self, err = openBelow(root, s.name); err != nil {
		return nil, errors.Join(err, unlinkAt(root, s.name, unix.AT_REMOVEDIR))
	}
	if s.lock, err = lockStage(s.self, unix.O_CREAT|unix.O_EXCL); err == nil {
		if err = s.checkOwner(); err == nil {
			return s, nil
		}
		s.lock.Close()
	}
	if !errors.Is(err, errTaken) {
		err = errors.Join(err, removeStage(root, s.self, s.name))
	}
	return nil, errors.Join(err, s.self.Close())
}

// checkOwner returns an error if the stage has another owner than the new file in it: then another
// user has put a directory of their own in the place of the stage. It does not compare with the
// process's user, since some file systems give all files one owner.
func (s *stage) checkOwner() error {
	stage, err := ownerOf(s.self)
	if err != nil {
		return err
	}
	file, err := ownerOf(s.lock)
	if err == nil && stage != file {
		err = fmt.Errorf("user %d has replaced the new directory %s", stage, s.self.Name())
	}
	return err
}

func ownerOf(f *os.File) (uid uint32, err error) {
	var info unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &info); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return info.Uid, nil
}

// errTaken reports that another process holds the lock of a stage.
var errTaken = errors.New("another process holds the stage")

// lockStage locks a stage and returns the lock file. It returns fs.ErrNotExist if the stage is
// gone. It locks a file because NFS cannot lock directories.
func lockStage(stage *os.File, create int) (*os.File, error) {
	flags := unix.O_RDWR | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC | create
	at := filepath.Join(stage.Name(), lockName)
	fd, err := retryEINTR(func() (int, error) { return unix.Openat(int(stage.Fd()), lockName, flags, 0o600) })
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: at, Err: err}
	}
	f := os.NewFile(uintptr(fd), at)
	if err := lockFile(f, stage); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func lockFile(f, stage *os.File) error {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if err == unix.EWOULDBLOCK {
			return errTaken
		}
		return &fs.PathError{Op: "lock", Path: f.Name(), Err: err}
	}
	var info unix.Stat_t // the file may have been removed between opening and locking
	if err := unix.Fstatat(int(stage.Fd()), lockName, &info, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return nil
}

// removeDeadStages removes the stages of dead owners. It ignores errors: a stage that stays does no
// harm, and the next writer tries again.
func removeDeadStages(root *os.File) {
	_ = eachName(root, func(name string) error {
		if strings.HasPrefix(name, stagePrefix) {
			_ = removeIfDead(root, name)
		}
		return nil
	})
}

// removeIfDead removes a stage, or returns errTaken if its owner is alive.
func removeIfDead(root *os.File, name string) error {
	stage, err := openBelow(root, name)
	if err != nil {
		return err
	}
	defer stage.Close()
	if own, err := isOwnStage(root, stage); !own || err != nil {
		return err
	}
	lock, err := lockStage(stage, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return unlinkAt(root, name, unix.AT_REMOVEDIR)
	}
	if err != nil {
		return err
	}
	return errors.Join(removeStage(root, stage, name), lock.Close())
}

// isOwnStage reports whether a stage belongs to this process's user, or to the owner of the bucket's
// directory. The second includes file systems that give all files one owner.
func isOwnStage(root, stage *os.File) (bool, error) {
	uid, err := ownerOf(stage)
	if err != nil || int(uid) == os.Geteuid() {
		return err == nil, err
	}
	bucket, err := ownerOf(root)
	return uid == bucket, err
}

// removeStage removes a stage that the caller has locked, and the lock file last. It removes only
// files that stages have, since another user may have renamed any directory to the stage's name.
func removeStage(root, stage *os.File, name string) error {
	err := eachName(stage, func(file string) error {
		if !strings.HasSuffix(file, tempSuffix) && !strings.HasPrefix(file, readyPrefix) {
			return nil
		}
		return unlinkAt(stage, file, 0)
	})
	if err != nil {
		return err
	}
	return errors.Join(unlinkAt(stage, lockName, 0), unlinkAt(root, name, unix.AT_REMOVEDIR))
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
	name := strconv.FormatUint(s.nextTemp.Add(1), 10) + tempSuffix
	return name, s.writeFile(name, data, mode, f)
}

// writeFile writes data to a new file with the given name in the stage. It returns fs.ErrExist when
// the name is taken; after any other error no such file is left. It uses system calls directly: it
// runs once for every chunk of an image, and package os makes more calls for each file.
func (s *stage) writeFile(name string, data []byte, mode fs.FileMode, f flushing) error {
	flags := unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_CLOEXEC
	fd, err := retryEINTR(func() (int, error) { return unix.Openat(s.dirFD(), name, flags, uint32(mode.Perm())) })
	if err != nil {
		return &fs.PathError{Op: "create", Path: filepath.Join(s.self.Name(), name), Err: err}
	}
	err = writeAll(fd, data)
	if err == nil && f == flushed {
		_, err = retryEINTR(func() (int, error) { return 0, unix.Fsync(fd) })
	}
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return errors.Join(&fs.PathError{Op: "write", Path: filepath.Join(s.self.Name(), name), Err: err}, unix.Unlinkat(s.dirFD(), name, 0))
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

// publish gives a staged file its name in the bucket, and makes the directories above it. It tries
// several times, because another process may remove an empty directory at any time. With noReplace
// it returns fs.ErrExist if the name is taken.
func (s *stage) publish(staged, name string, noReplace bool) error {
	err := s.publishOnce(staged, name, noReplace)
	for tries := 0; errors.Is(err, unix.ENOENT) && tries < 3; tries++ {
		err = s.publishOnce(staged, name, noReplace)
	}
	return err
}

func (s *stage) publishOnce(staged, name string, noReplace bool) error {
	dir := int(s.root.Fd())
	if above := path.Dir(name); above != "." {
		var err error
		if dir, err = enterBelow(s.root, above); err != nil {
			return err
		}
		defer unix.Close(dir)
	}
	if noReplace {
		return s.linkNew(staged, dir, path.Base(name))
	}
	return unix.Renameat(s.dirFD(), staged, dir, path.Base(name))
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

// close removes the stage and its files, and closes its descriptors.
func (s *stage) close() error {
	return errors.Join(removeStage(s.root, s.self, s.name), s.lock.Close(), s.self.Close(), s.root.Close())
}
