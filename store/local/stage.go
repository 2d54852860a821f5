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
	stagePrefix = ".cairn-stage-"
	lockName    = "lock"
)

// stage is a private directory inside the bucket's, where objects wait for their names. The lock on a file
// in it says that its owner lives; the stages of dead owners are removed by whoever writes there next. Only
// the maker creates that file, and it is removed last: a stage without it is empty, new or nearly gone.
type stage struct {
	dir  string
	lock *os.File
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
			return &stage{dir: dir, lock: lock}, nil
		}
		if !errors.Is(err, errTaken) && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("writing to %s: %w", b.root, errors.Join(err, remove(dir)))
		}
		lost = err // a sweeping process was between our two steps, and removes it
	}
	return nil, fmt.Errorf("writing to %s: %w", b.root, lost)
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

// eachName calls do for the names in a directory, of which do may remove some, until it fails.
func eachName(dir string, do func(name string) error) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
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

// add writes data to a new file, flushed if the options ask for it, and returns its path.
func (s *stage) add(data []byte, o Options) (string, error) {
	f, err := os.OpenFile(s.newName(), os.O_WRONLY|os.O_CREATE|os.O_EXCL, o.Mode)
	if err != nil {
		return "", err
	}
	_, err = f.Write(data)
	if err == nil && !o.NoSync {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

func (s *stage) newName() string {
	return filepath.Join(s.dir, strconv.FormatUint(s.next.Add(1), 10)+".tmp")
}

// close removes the stage with everything in it.
func (s *stage) close() error { return errors.Join(remove(s.dir), s.lock.Close()) }
