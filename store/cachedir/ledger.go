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
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"cairn/store/local"
)

// controlName is the directory for files that are not chunks. Neither casync gc nor desync verify
// and prune look into it, and local.List does not show it.
const (
	controlName = ".cairn-cache"
	tempSuffix  = ".tmp"
)

// ledger is an open cache directory: its paths, and the state file that processes share.
type ledger struct {
	root    string // without symbolic links
	control string
	option  int64 // Options.Limit
	boot    [16]byte
	id      uint64 // of the ledger, for the names of its files
	next    atomic.Uint64
	mutex   chan struct{} // has one element while unlocked; guards state within this process
	state   *os.File
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

// openLedger opens the ledger of a directory. With mustExist, absence is fs.ErrNotExist.
func openLedger(path string, o Options, m openMode) (l *ledger, needsCount bool, err error) {
	if m == mayCreate {
		if err := makeDir(path); err != nil {
			return nil, false, err
		}
	}
	root, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, false, err
	}
	l = &ledger{root: root, control: filepath.Join(root, controlName), option: o.Limit,
		boot: bootID(), id: rand.Uint64(), mutex: make(chan struct{}, 1)}
	l.mutex <- struct{}{}
	fresh, err := l.claimControlDir(m)
	if err != nil {
		return nil, false, err
	}
	if l.state, err = l.openControl("state"); err != nil {
		return nil, false, err
	}
	if evictor, err := l.openControl("evictor"); err == nil { // a full disk may prevent its creation later
		evictor.Close()
	}
	if needsCount, err = l.initTally(fresh); err != nil {
		return nil, false, errors.Join(err, l.close())
	}
	return l, needsCount, nil
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

// stillExists reports whether the state file is still the one that was opened.
func (l *ledger) stillExists() bool {
	opened, err := l.state.Stat()
	if err != nil {
		return false
	}
	found, err := os.Lstat(l.state.Name())
	return err == nil && os.SameFile(opened, found)
}

func (l *ledger) close() error { return l.state.Close() }

// claimControlDir checks for the control directory, or makes it if the directory has no chunks;
// then the cache is fresh.
func (l *ledger) claimControlDir(m openMode) (fresh bool, err error) {
	info, err := os.Lstat(l.control)
	switch {
	case err == nil && info.IsDir():
		return false, nil
	case err == nil:
		return false, fmt.Errorf("%s is not a directory", l.control)
	case !errors.Is(err, fs.ErrNotExist) || m == mustExist:
		return false, err
	}
	holds, err := holdsChunks(l.root)
	if err != nil {
		return false, err
	}
	if holds {
		if _, err := os.Lstat(l.control); err == nil {
			return false, nil // another process made it meanwhile
		}
		return false, errForeign
	}
	err = os.Mkdir(l.control, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	return err == nil, err
}

func holdsChunks(root string) (holds bool, err error) {
	err = eachName(root, func(_ *os.File, name string) error {
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

// eachName calls do for the names in a directory until it fails. do may remove some of them. The
// directory must not be a symbolic link, so that nothing outside is ever counted or removed.
func eachName(dir string, do func(d *os.File, name string) error) error {
	d, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer d.Close()
	return local.EachName(d, func(name string) error { return do(d, name) })
}

// openControl opens one of the files in the control directory, and creates it if necessary.
func (l *ledger) openControl(name string) (*os.File, error) {
	return os.OpenFile(filepath.Join(l.control, name), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o644)
}

func (l *ledger) tempName() string {
	return filepath.Join(l.control, fmt.Sprintf("%016x-%d%s", l.id, l.next.Add(1), tempSuffix))
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
		var s unix.Statfs_t
		if err := unix.Statfs(l.root, &s); err != nil {
			return 0, &fs.PathError{Op: "statfs", Path: l.root, Err: err}
		}
		block := int64(s.Bsize) //nolint:unconvert // it is an int32 on 32-bit machines
		return DefaultLimit(int64(s.Blocks)*block, int64(s.Bavail)*block, used), nil
	}
	return l.option, nil
}

// DefaultLimit returns the limit of a cache that takes used bytes of a file system of size bytes,
// of which free are free. It is a tenth of the file system, and at most half of the space that
// would be free without the cache. Data of other programs lowers it.
func DefaultLimit(size, free, used int64) int64 { return min(size/10, (free+used)/2) }

// removeTempFiles removes the files of writers. The caller knows that no writer is alive.
func (l *ledger) removeTempFiles() error {
	return eachName(l.control, func(d *os.File, name string) error {
		if !strings.HasSuffix(name, tempSuffix) {
			return nil
		}
		return os.Remove(filepath.Join(d.Name(), name))
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

// lockPatience limits the wait for a lock that is held for microseconds, unless its holder is
// stopped or the disk does not answer.
const lockPatience = 2 * time.Second

var errBusy = errors.New("another process keeps it locked")

// updateTally calls change with the tally under an exclusive lock, and writes the changed tally. It
// returns fs.ErrNotExist when the cache was removed.
func (l *ledger) updateTally(ctx context.Context, change func(*tally) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, lockPatience, fmt.Errorf("%s: %w", l.control, errBusy))
	defer cancel()
	select {
	case <-l.mutex:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { l.mutex <- struct{}{} }()
	if err := lockWithin(ctx, l.state, unix.LOCK_EX); err != nil {
		return err
	}
	defer func() { _ = flock(l.state, unix.LOCK_UN) }() // the file is open and locked here: nothing can fail
	return l.applyChange(change)
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

// lockWithin locks a file, and retries with backoff until the context ends.
func lockWithin(ctx context.Context, f *os.File, how int) error {
	const shortest, longest = 50 * time.Microsecond, 5 * time.Millisecond
	for wait := shortest; ; wait = min(2*wait, longest) {
		err := flock(f, how|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		select {
		case <-time.After(wait):
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
