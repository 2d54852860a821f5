// Package cachedir keeps chunks in a directory, up to a size: the near side of supply.Cached. The
// directory is a casync chunk store that other tools may read, and any number of processes may
// share it. When it is full, the least recently used chunks are evicted. The package knows nothing
// of the content of chunks. Its readers verify each chunk, so files are never flushed. It needs
// Linux.
//
// Beside the chunks there is one directory, .cairn-cache, with a few small files:
//
//	state    how many bytes are taken, in one line of fixed size; its lock is held for microseconds
//	writers  locked (shared) by each write from before its reservation until its chunk has its name
//	evictor  locked by the process that evicts
//	*.tmp    chunks being written
//
// Space is reserved before a byte is written, and released after a byte is removed. A process
// killed between the two leaves a count that is too high, never too low. The next eviction counts
// again.
package cachedir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"cairn/store"
	"cairn/store/local"
)

// Unlimited is the value of Options.Limit for no limit.
const Unlimited = -1

// Options configure a Dir.
type Options struct {
	// Limit limits the bytes that the chunks and their directories take on the disk, each counted
	// in blocks of 4 KiB; 0 is DefaultLimit.
	Limit int64
}

// Dir is a bucket for chunks whose size is limited. Safe for concurrent use, also with other Dirs
// and processes on the same directory; each applies its own limit.
type Dir struct {
	path    string
	options Options
	files   *local.Bucket
	boot    [16]byte // id of the running boot; a confined process cannot read it later

	evictor evictor
	stuck   atomic.Bool // used by the ledgers
	used    atomic.Bool // a chunk was read or written

	mu     sync.Mutex // guards ledger
	ledger *ledger    // nil until the directory is opened, and after it was removed
}

var _ store.Bucket = (*Dir)(nil)

// Open returns the cache in a directory, which the first Write creates if it does not exist. Open
// reports no errors: an unreadable cache is empty, and Write returns the error of one that cannot
// be written. If the cache exceeds its limit, an eviction starts in the background. The caller must
// call Close.
func Open(path string, o Options) *Dir {
	d := &Dir{path: path, options: o, files: local.At(path, local.Options{}), boot: bootID()}
	_, _ = d.attachLedger(mustExist)
	return d
}

// Close cancels a running eviction and waits for it. No other method may be called afterwards.
func (d *Dir) Close() error {
	d.evictor.stopAndWait()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ledger == nil {
		return nil
	}
	return d.ledger.close()
}

// String implements store.Reader: it returns the directory.
func (d *Dir) String() string { return d.path }

// Stat implements store.Reader.
func (d *Dir) Stat(ctx context.Context, name string) (int64, error) { return d.files.Stat(ctx, name) }

// Read implements store.Reader. It marks the chunk as used, which delays its eviction.
func (d *Dir) Read(ctx context.Context, name string, dst []byte, limit int64) ([]byte, error) {
	data, err := d.files.Read(ctx, name, dst, limit)
	if err == nil {
		d.used.Store(true)
		d.markUsed(name)
	}
	return data, err
}

// usedPrecision is the precision of a chunk's time of last use: a hit within that time of the last
// one costs no write.
const usedPrecision = time.Hour

// markUsed sets a chunk's time of last use to now. It also corrects a time in the future, from a
// wrong clock. It ignores errors, such as on a read-only disk.
func (d *Dir) markUsed(name string) {
	d.mu.Lock()
	l := d.ledger
	d.mu.Unlock()
	if l == nil {
		return
	}
	info, err := l.root.Lstat(name)
	if err != nil || time.Since(info.ModTime()).Abs() < usedPrecision {
		return
	}
	now := time.Now()
	_ = l.root.Chtimes(name, now, now)
}

// attempts is the number of times a Write tries while the directory, or a part of it, is being
// removed.
const attempts = 4

var errVanishes = errors.New("it is being removed repeatedly")

// Write keeps a chunk and replaces one of the same name. It drops the chunk and returns nil if
// there is no room until an eviction ends. It does not flush the chunk. An error means that the
// directory cannot be written at present; if its disk is full, an eviction starts.
func (d *Dir) Write(ctx context.Context, name string, data []byte) error {
	if _, _, ok := store.ChunkObject(name); !ok {
		return fmt.Errorf("%q is not the name of a chunk", name)
	}
	d.used.Store(true)
	err := errVanishes
	for range attempts {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		once := d.tryWrite(ctx, name, data)
		// A concurrent write may have detected it first, and closed the ledger that this one used.
		if !errors.Is(once, fs.ErrNotExist) && !errors.Is(once, fs.ErrClosed) {
			err = once
			break
		}
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrPermission):
		err = fmt.Errorf("%w: %w", store.ErrDenied, err)
	}
	return fmt.Errorf("keeping a chunk in %s: %w", d.path, err)
}

// tryWrite is one attempt of Write. It returns fs.ErrNotExist when the directory was removed, or
// when an eviction has just removed the chunk's empty directory.
func (d *Dir) tryWrite(ctx context.Context, name string, data []byte) error {
	l, err := d.attachLedger(mayCreate)
	if err != nil {
		return err
	}
	err = fs.ErrNotExist
	if l.stillExists() {
		err = d.writeTo(ctx, l, name, data)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist) && !l.stillExists():
		d.detachLedger(l)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		d.startEviction(l, request{diskFull: true})
	}
	return err
}

func (d *Dir) writeTo(ctx context.Context, l *ledger, name string, data []byte) error {
	need, err := l.chunkSpace(name, len(data))
	if err != nil {
		return err
	}
	r, err := l.reserveSpace(ctx, need)
	if err != nil {
		return err
	}
	if r.crowded {
		d.startEviction(l, request{need: need})
	}
	if r.lock == nil {
		return nil
	}
	defer r.lock.Close()
	return l.putChunk(name, data, need)
}

// chunkSpace returns the space of a chunk of size bytes, plus that of its directory if Write must
// make it.
func (l *ledger) chunkSpace(name string, size int) (int64, error) {
	_, err := l.root.Lstat(path.Dir(name))
	switch {
	case err == nil:
		return roundToBlocks(int64(size)), nil
	case errors.Is(err, fs.ErrNotExist):
		return roundToBlocks(int64(size)) + blockSize, nil
	}
	return 0, err
}

// putChunk writes a chunk for which space was reserved, and releases the space that it does not
// need. If the release fails, the count is too high until the next eviction.
func (l *ledger) putChunk(name string, data []byte, room int64) error {
	temp := l.tempName()
	err := l.writeFile(temp, data)
	var replaced int64
	if err == nil {
		replaced, err = l.publishFile(temp, name, room > roundToBlocks(int64(len(data))))
	}
	if err == nil {
		l.releaseSpace(replaced)
		return nil
	}
	if gone := l.root.Remove(path.Join(controlName, temp)); gone == nil || errors.Is(gone, fs.ErrNotExist) {
		l.cancelReservation(roundToBlocks(int64(len(data)))) // the directory may exist, or an eviction has released it
	}
	return err
}

func (l *ledger) writeFile(temp string, data []byte) error {
	f, err := l.root.OpenFile(path.Join(controlName, temp), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

// publishFile gives a temporary file its name, and returns the space of the file that it replaced. It
// makes the directory if its space is reserved (dirPaid). Otherwise the directory existed a moment
// ago, and its absence is fs.ErrNotExist.
func (l *ledger) publishFile(temp, name string, dirPaid bool) (replaced int64, err error) {
	if dirPaid {
		err := l.root.Mkdir(path.Dir(name), 0o755)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return 0, err
		}
	}
	control, err := l.openDir(controlName)
	if err != nil {
		return 0, err
	}
	defer control.Close()
	dir, err := l.openDir(path.Dir(name))
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	return renameOrSwap(control, temp, dir, path.Base(name))
}

// renameOrSwap renames a file. It swaps an existing file with the new one and removes the old, so
// that exactly one of several concurrent writers releases the space of each old file.
func renameOrSwap(from *os.File, temp string, to *os.File, final string) (replaced int64, err error) {
	err = renameAt(from, temp, to, final, unix.RENAME_NOREPLACE)
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS): // some network file systems
		return 0, renameAt(from, temp, to, final, 0)
	case !errors.Is(err, fs.ErrExist):
		return 0, err
	}
	if err := renameAt(from, temp, to, final, unix.RENAME_EXCHANGE); err != nil {
		return 0, err
	}
	var old unix.Stat_t
	if unix.Fstatat(int(from.Fd()), temp, &old, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return 0, nil // the chunk has its name; the next count finds the old file
	}
	if unix.Unlinkat(int(from.Fd()), temp, 0) != nil {
		return 0, nil // as before
	}
	return roundToBlocks(old.Size), nil
}

func renameAt(from *os.File, temp string, to *os.File, final string, flags uint) error {
	var err error
	if flags == 0 { // the kernel or the file system may lack renameat2
		err = unix.Renameat(int(from.Fd()), temp, int(to.Fd()), final)
	} else {
		err = unix.Renameat2(int(from.Fd()), temp, int(to.Fd()), final, flags)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: filepath.Join(from.Name(), temp), New: filepath.Join(to.Name(), final), Err: err}
	}
	return nil
}

// blockSize is the unit in which files and directories are counted, and the block size of most file
// systems.
const blockSize = 4096

// roundToBlocks returns the disk space of a file of size bytes, a multiple of blockSize.
func roundToBlocks(size int64) int64 { return (size + blockSize - 1) / blockSize * blockSize }

// isChunkDir reports whether a directory of this name may hold chunks.
func isChunkDir(name string) bool {
	return len(name) == 4 && strings.Trim(name, "0123456789abcdef") == ""
}

// attachLedger opens the ledger of the directory if this Dir has none, and starts an eviction if it
// needs a count.
func (d *Dir) attachLedger(m openMode) (*ledger, error) {
	l, needsCount, err := d.tryAttach(m)
	if err == nil && needsCount {
		d.startEviction(l, request{})
	}
	return l, err
}

// tryAttach opens the ledger without holding mu, since disk access may block for long.
func (d *Dir) tryAttach(m openMode) (l *ledger, needsCount bool, err error) {
	d.mu.Lock()
	l = d.ledger
	d.mu.Unlock()
	if l != nil {
		return l, false, nil
	}
	l, needsCount, err = openLedger(d, m)
	if err != nil {
		return nil, false, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ledger != nil {
		_ = l.close()
		return d.ledger, false, nil
	}
	d.ledger = l
	return l, needsCount, nil
}

// isAttached reports whether l is the ledger that this Dir uses.
func (d *Dir) isAttached(l *ledger) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ledger == l
}

// detachLedger drops the ledger of a removed directory. Concurrent writes may be about to detect
// the same.
func (d *Dir) detachLedger(l *ledger) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ledger == l {
		d.ledger = nil
		_ = l.close()
	}
}
