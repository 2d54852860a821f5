package cachedir

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"cairn/internal/owndir"
	"cairn/store/local"
)

// controlName is the directory for files that are not chunks. Neither casync gc nor desync verify
// and prune look into it, and local.List does not show it.
const (
	controlName = ".cairn-cache"
	tempSuffix  = ".tmp"
)

// ledger is an open cache directory: its handle, and the state file that processes share. All work
// goes by the handle, since other users may be able to exchange directories.
type ledger struct {
	root   *os.Root
	option int64 // Options.Limit
	boot   [16]byte
	id     uint64 // of the ledger, for the names of its files
	next   atomic.Uint64
	mutex  chan struct{} // has one element while unlocked; guards state within this process
	state  *os.File
	stuck  *atomic.Bool // of the Dir: the last lockState failed with errBusy
}

// errForeign protects stores: a limit would evict chunks that are needed.
var errForeign = errors.New("it holds chunks and was not made as a cache: " +
	"name another directory, or make the directory " + controlName + " in it if it may be evicted from")

// openMode selects whether openLedger turns a directory that is not a cache into one.
type openMode bool

const (
	mustExist openMode = false
	mayCreate openMode = true
)

// openLedger opens the ledger of d's directory. With mustExist, absence is fs.ErrNotExist.
func openLedger(d *Dir, m openMode) (l *ledger, needsCount bool, err error) {
	if m == mayCreate {
		if err := makeDir(d.path); err != nil {
			return nil, false, err
		}
	}
	root, err := os.OpenRoot(d.path + "/") // the slash refuses a FIFO, which would block
	if err != nil {
		return nil, false, err
	}
	l = &ledger{root: root, option: d.options.Limit, boot: d.boot, id: rand.Uint64(),
		mutex: make(chan struct{}, 1), stuck: &d.stuck}
	l.mutex <- struct{}{}
	if needsCount, err = l.openState(m); err != nil {
		return nil, false, errors.Join(err, l.close())
	}
	return l, needsCount, nil
}

// openState opens the state file, and creates it in a fresh cache.
func (l *ledger) openState(m openMode) (needsCount bool, err error) {
	fresh, err := l.claimControlDir(m)
	if err != nil {
		return false, err
	}
	if l.state, err = l.openControl("state"); err != nil {
		return false, err
	}
	if evictor, err := l.openControl("evictor"); err == nil { // a full disk may prevent its creation later
		evictor.Close()
	}
	return l.initTally(fresh)
}

// makeDir makes a directory with its parents. It returns fs.ErrNotExist if the directory is removed
// meanwhile.
func makeDir(path string) error {
	err := os.MkdirAll(path, 0o755)
	if errors.Is(err, fs.ErrExist) { // a file, or a directory a moment ago
		if _, gone := os.Lstat(path); gone != nil {
			return gone
		}
	}
	return err
}

// stillExists reports whether the path of the state file still leads to the file that was opened.
// The directory may have been removed or moved.
func (l *ledger) stillExists() bool {
	opened, err := l.state.Stat()
	if err != nil {
		return false
	}
	found, err := os.Lstat(l.state.Name())
	return err == nil && os.SameFile(opened, found)
}

func (l *ledger) close() error {
	err := l.root.Close()
	if l.state != nil {
		err = errors.Join(err, l.state.Close())
	}
	return err
}

// claimControlDir checks for the control directory, or makes it if the directory has no chunks;
// then the cache is fresh.
func (l *ledger) claimControlDir(m openMode) (fresh bool, err error) {
	info, err := l.root.Lstat(controlName)
	switch {
	case err == nil && info.IsDir():
		return false, nil
	case err == nil:
		return false, fmt.Errorf("%s is not a directory", filepath.Join(l.root.Name(), controlName))
	case !errors.Is(err, fs.ErrNotExist) || m == mustExist:
		return false, err
	}
	holds, err := l.holdsChunks()
	if err != nil {
		return false, err
	}
	if holds {
		if _, err := l.root.Lstat(controlName); err == nil {
			return false, nil // another process made it meanwhile
		}
		return false, errForeign
	}
	err = l.root.Mkdir(controlName, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	return err == nil, err
}

func (l *ledger) holdsChunks() (holds bool, err error) {
	err = l.eachName(".", func(_ *os.File, name string) error {
		if isChunkDir(name) {
			return fs.SkipAll
		}
		return nil
	})
	if errors.Is(err, fs.SkipAll) {
		return true, nil
	}
	return false, err
}

// openDir opens a directory of the cache. It must not be a symbolic link, so that nothing outside is
// ever counted, written or removed.
func (l *ledger) openDir(name string) (*os.File, error) {
	return owndir.OpenNoFollow(l.root, name, os.O_RDONLY|unix.O_DIRECTORY)
}

// eachName calls do for the names in a directory until it fails. do may remove some of them.
func (l *ledger) eachName(dir string, do func(d *os.File, name string) error) error {
	d, err := l.openDir(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return local.EachName(d, func(name string) error { return do(d, name) })
}

// openControl opens one of the files in the control directory, and creates it if necessary. Users
// who may not write the file must not read it either: a file that is open for reading can be locked.
func (l *ledger) openControl(name string) (*os.File, error) {
	f, info, err := owndir.OpenRegular(l.root, path.Join(controlName, name), os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); withoutReaders(mode) != mode {
		_ = f.Chmod(withoutReaders(mode)) // fails for a file of another user
	}
	return f, nil
}

// withoutReaders removes all permissions from the classes of users that may not write.
func withoutReaders(mode fs.FileMode) fs.FileMode {
	writers := mode & 0o222
	return mode & (writers<<1 | writers | writers>>1)
}

// tempName returns a new name in the control directory.
func (l *ledger) tempName() string {
	return fmt.Sprintf("%016x-%d%s", l.id, l.next.Add(1), tempSuffix)
}

// initTally initialises the tally of a fresh cache. If no writer is alive, it removes the files
// that dead writers left.
func (l *ledger) initTally(fresh bool) (needsCount bool, err error) {
	err = l.updateTally(context.Background(), func(t *tally) error {
		if fresh && !t.known {
			t.setCounted(0, l.boot, time.Now())
		}
		limit, err := l.currentLimit(t.used)
		if err != nil {
			return err
		}
		needsCount = t.isStale(l.boot, time.Now()) || t.used > highWater(limit)
		alone, err := l.tryLock("writers", unix.LOCK_EX)
		if err != nil || alone == nil {
			return err
		}
		defer alone.Close()
		return l.removeTempFiles()
	})
	return needsCount, err
}

// currentLimit returns the limit in bytes of a cache that takes used bytes.
func (l *ledger) currentLimit(used int64) (int64, error) {
	switch l.option {
	case Unlimited:
		return math.MaxInt64, nil
	case 0:
		s, err := l.statFS()
		if err != nil {
			return 0, err
		}
		block := int64(s.Bsize) //nolint:unconvert // it is an int32 on 32-bit machines
		return DefaultLimit(int64(s.Blocks)*block, int64(s.Bavail)*block, used), nil
	}
	return l.option, nil
}

func (l *ledger) statFS() (s unix.Statfs_t, err error) {
	dir, err := l.openDir(".")
	if err != nil {
		return s, err
	}
	defer dir.Close()
	if err := unix.Fstatfs(int(dir.Fd()), &s); err != nil {
		return s, &fs.PathError{Op: "statfs", Path: dir.Name(), Err: err}
	}
	return s, nil
}

// DefaultLimit returns the limit of a cache that takes used bytes of a file system of size bytes,
// of which free are free. It is a tenth of the file system, and at most half of the space that
// would be free without the cache. Data of other programs lowers it.
func DefaultLimit(size, free, used int64) int64 { return min(size/10, (free+used)/2) }

// removeTempFiles removes the files of writers. The caller knows that no writer is alive.
func (l *ledger) removeTempFiles() error {
	return l.eachName(controlName, func(_ *os.File, name string) error {
		if !strings.HasSuffix(name, tempSuffix) {
			return nil
		}
		return l.root.Remove(path.Join(controlName, name))
	})
}

// reservation is the answer to a write's request for space.
type reservation struct {
	lock    *os.File // held until the chunk has its name; nil if there is no room
	crowded bool     // an eviction should start
}

// reserveSpace reserves space for a write.
func (l *ledger) reserveSpace(ctx context.Context, need int64) (r reservation, err error) {
	err = l.updateTally(ctx, func(t *tally) error {
		limit, err := l.currentLimit(t.used)
		switch {
		case err != nil:
			return err
		case l.option == 0 && need > limit: // the default limit is smaller than one chunk
			return fmt.Errorf("its disk leaves a cache room for %d bytes: %w", limit, unix.ENOSPC)
		}
		r.crowded = need <= limit && (!t.known || need > highWater(limit)-t.used)
		if !t.known || need > limit-t.used {
			return nil
		}
		// An evictor locks it only while it holds the state, as this function does.
		r.lock, err = l.tryLock("writers", unix.LOCK_SH)
		if r.lock != nil {
			t.tryReserve(need, limit)
		}
		return err
	})
	if err != nil && r.lock != nil {
		err = errors.Join(err, r.lock.Close())
	}
	return r, err
}

// releaseSpace releases the space of a removed file. If that fails, the count is too high until the
// next one.
func (l *ledger) releaseSpace(n int64) {
	if n > 0 {
		_ = l.updateTally(context.Background(), func(t *tally) error { t.release(n); return nil })
	}
}

// cancelReservation releases the space that reserveSpace took. The caller still holds the
// reservation's lock.
func (l *ledger) cancelReservation(n int64) {
	_ = l.updateTally(context.Background(), func(t *tally) error { t.cancelReserve(n); return nil })
}

// A lock is held for microseconds, and for drainTimeout at the beginning of a count, unless its
// holder is stopped or the disk does not answer.
const (
	// lockTries limits how often a lock is tried, which takes about lockPatience. It counts tries,
	// since time also passes while this process is stopped. After a failure each call tries once,
	// until one of them finds the lock free.
	lockTries    = int(lockPatience / longestPause)
	lockPatience = 500 * time.Millisecond
	// mutexPatience limits the wait for another goroutine, which may wait for the disk.
	mutexPatience = 2 * time.Second
)

var errBusy = errors.New("another process keeps it locked")

// updateTally calls change with the tally under an exclusive lock, and writes the changed tally. It
// returns fs.ErrNotExist when the cache was removed.
func (l *ledger) updateTally(ctx context.Context, change func(*tally) error) error {
	waiting, cancel := context.WithTimeoutCause(ctx, mutexPatience, fmt.Errorf("%s: %w", l.state.Name(), errBusy))
	defer cancel()
	select {
	case <-l.mutex:
	case <-waiting.Done():
		return context.Cause(waiting)
	}
	defer func() { l.mutex <- struct{}{} }()
	if err := l.lockState(ctx); err != nil {
		return err
	}
	defer func() { _ = flock(l.state, unix.LOCK_UN) }() // the file is open and locked here: nothing can fail
	return l.applyChange(change)
}

func (l *ledger) lockState(ctx context.Context) error {
	tries := lockTries
	if l.stuck.Load() {
		tries = 1
	}
	err := lockWithin(ctx, l.state, unix.LOCK_EX, tries)
	if err == nil || errors.Is(err, errBusy) {
		l.stuck.Store(err != nil)
	}
	return err
}

func (l *ledger) applyChange(change func(*tally) error) error {
	info, err := l.state.Stat()
	if err != nil {
		return err
	}
	if s, is := info.Sys().(*syscall.Stat_t); is && s.Nlink == 0 {
		return &fs.PathError{Op: "lock", Path: l.state.Name(), Err: fs.ErrNotExist}
	}
	line := make([]byte, tallySize+1)
	n, err := l.state.ReadAt(line, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	old, _ := decodeTally(line[:n]) // an unreadable tally is unknown
	t := old
	if err := change(&t); err != nil || t == old {
		return err
	}
	_, err = l.state.WriteAt(t.encode(), 0)
	return err
}

// tryLock locks one of the control files without waiting; closing the file unlocks it. It returns
// nil if the file is locked already.
func (l *ledger) tryLock(name string, how int) (*os.File, error) {
	f, err := l.openControl(name)
	if err != nil {
		return nil, err
	}
	err = flock(f, how|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, nil
	}
	return nil, &fs.PathError{Op: "lock", Path: f.Name(), Err: err}
}

const longestPause = 5 * time.Millisecond

// lockWithin locks a file. It tries with backoff until the context ends, and at most tries times.
func lockWithin(ctx context.Context, f *os.File, how, tries int) error {
	const shortestPause = 50 * time.Microsecond
	for pause := shortestPause; ; pause = min(2*pause, longestPause) {
		err := flock(f, how|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		if tries--; tries <= 0 {
			return fmt.Errorf("%s: %w", f.Name(), errBusy)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// flock locks f without taking the descriptor out of it, since another goroutine may close f.
func flock(f *os.File, how int) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var locking error
	if err := c.Control(func(fd uintptr) { locking = unix.Flock(int(fd), how) }); err != nil {
		return fmt.Errorf("locking %s: %w", f.Name(), fs.ErrClosed) // the error of Control has no exported type
	}
	return locking
}

// bootID returns the id of the running boot, or zero if it is unknown.
func bootID() (id [16]byte) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return id
	}
	decoded, _ := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(text)), "-", ""))
	copy(id[:], decoded)
	return id
}
