// Package cachedir keeps chunks in a directory, up to a size: the near side of supply.Cached. The directory is a
// casync chunk store, which other tools may read, and belongs to any number of processes at once. When it is
// full, the chunks that were used the longest ago go. It knows nothing of what chunks hold: who reads from it
// proves what he reads, so nothing here is ever flushed. It needs Linux.
//
// Beside the chunks there is one directory, .cairn-cache, with a few small files:
//
//	state    how many bytes are taken, in one line of fixed size; its lock is held for microseconds
//	writers  locked, shared, by each write from before its room is taken until its chunk has its name
//	evictor  locked by the one process that makes room
//	*.tmp    chunks that are being written
//
// Room is taken before a byte is written, and given back after a byte is gone. Whoever is killed between the
// two leaves a count that is too high, never too low; the next eviction counts anew.
package cachedir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cairn/store"
	"cairn/store/local"
)

// Unlimited is a limit that nothing reaches.
const Unlimited = -1

// Options are the choices for a Dir.
type Options struct {
	// Limit is how many bytes the chunks and their directories may take on the disk, each counted in blocks
	// of 4 KiB; 0 is DefaultLimit.
	Limit int64
}

// Dir is a bucket for chunks that holds no more than its limit. Safe for concurrent use, also by other Dirs
// and processes with the same directory; each keeps to its own limit.
type Dir struct {
	path    string
	options Options
	files   *local.Bucket

	evictor evictor

	mu     sync.Mutex // guards what follows
	ledger *ledger    // nil before the directory could be taken, and after it was removed
}

var _ store.Bucket = (*Dir)(nil)

// Open is a cache in a directory, which is made by the first Write if it does not exist. Nothing about it is
// an error here: one that cannot be read is empty, and Write says why it cannot be written. If more is in it
// than the limit allows, room is made in the background. Close must be called in the end.
func Open(path string, o Options) *Dir {
	d := &Dir{path: path, options: o, files: local.At(path, local.Options{})}
	_, _ = d.attach(mustExist)
	return d
}

// Close ends an eviction that is under way. No other method may be called afterwards.
func (d *Dir) Close() error {
	d.evictor.end()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ledger == nil {
		return nil
	}
	return d.ledger.close()
}

// String implements store.Reader: it is the directory.
func (d *Dir) String() string { return d.path }

// Stat implements store.Reader.
func (d *Dir) Stat(ctx context.Context, name string) (int64, error) { return d.files.Stat(ctx, name) }

// Read implements store.Reader. What is read was used, and is evicted later than what was not.
func (d *Dir) Read(ctx context.Context, name string, dst []byte, limit int64) ([]byte, error) {
	data, err := d.files.Read(ctx, name, dst, limit)
	if err == nil {
		touch(filepath.Join(d.path, name))
	}
	return data, err
}

// touchEvery is how well the age of a chunk is known: a hit within that time of the last costs no write.
const touchEvery = time.Hour

// touch makes a chunk young. A time in the future, from when the clock was wrong, is set right. That it cannot
// be done, on a read-only disk for instance, is no matter.
func touch(file string) {
	info, err := os.Lstat(file)
	if err != nil || time.Since(info.ModTime()).Abs() < touchEvery {
		return
	}
	_ = unix.UtimesNanoAt(unix.AT_FDCWD, file, nil, unix.AT_SYMLINK_NOFOLLOW)
}

// attempts is how often a write finds the directory, or a part of it, removed before it gives up.
const attempts = 4

var errVanishes = errors.New("it is removed again and again")

// Write keeps a chunk, or drops it when there is no room until an eviction is done; that is no failure. It
// does not wait for the disk to have it. An error means that the directory cannot be written now: if its disk
// is full, room is being made. A chunk of that name is replaced.
func (d *Dir) Write(ctx context.Context, name string, data []byte) error {
	if _, _, ok := store.ChunkObject(name); !ok {
		return fmt.Errorf("%q is not the name of a chunk", name)
	}
	err := errVanishes
	for range attempts {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		once := d.write(ctx, name, data)
		// Another write may have found out first, and closed what this one was using.
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

// write is Write once. It is fs.ErrNotExist when the directory has to be looked for anew, or an eviction has
// just removed the one that the chunk belongs into, which was empty.
func (d *Dir) write(ctx context.Context, name string, data []byte) error {
	l, err := d.attach(mayMake)
	if err != nil {
		return err
	}
	err = d.writeTo(ctx, l, name, data)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !l.isThere():
		d.detach(l)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		d.evict(l, request{diskFull: true})
	}
	return err
}

func (d *Dir) writeTo(ctx context.Context, l *ledger, name string, data []byte) error {
	need, err := l.cost(name, len(data))
	if err != nil {
		return err
	}
	r, err := l.reserve(ctx, need)
	if err != nil {
		return err
	}
	if r.crowded {
		d.evict(l, request{need: need})
	}
	if r.lock == nil {
		return nil
	}
	defer r.lock.Close()
	return l.put(name, data, need)
}

// cost is what a chunk of size bytes takes, with its directory if that has to be made.
func (l *ledger) cost(name string, size int) (int64, error) {
	_, err := os.Lstat(filepath.Join(l.root, filepath.Dir(name)))
	switch {
	case err == nil:
		return blocks(int64(size)), nil
	case errors.Is(err, fs.ErrNotExist):
		return blocks(int64(size)) + blockSize, nil
	}
	return 0, err
}

// put writes a chunk for which room was taken, and gives back what it does not need. If that fails, the count
// is too high until the next eviction.
func (l *ledger) put(name string, data []byte, room int64) error {
	temp := l.tempName()
	err := writeFile(temp, data)
	var replaced int64
	if err == nil {
		replaced, err = publish(temp, filepath.Join(l.root, name), room > blocks(int64(len(data))))
	}
	if err == nil {
		l.giveBack(replaced)
		return nil
	}
	if gone := os.Remove(temp); gone == nil || errors.Is(gone, fs.ErrNotExist) {
		l.cancel(blocks(int64(len(data)))) // the directory may be there, or an eviction has given it back
	}
	return err
}

func writeFile(name string, data []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

// publish gives a file its name, and says how much went with the file that had it before. It makes the directory
// if that was paid for; else that was there a moment ago, and a missing one is fs.ErrNotExist.
func publish(temp, final string, dirPaid bool) (replaced int64, err error) {
	if dirPaid {
		err := os.Mkdir(filepath.Dir(final), 0o755)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return 0, err
		}
	}
	return exchange(temp, final)
}

// exchange renames a file. One that is in the way is swapped for it and then removed, so that exactly one of
// many who replace a chunk gives back the room of each old one.
func exchange(temp, final string) (replaced int64, err error) {
	err = renameat2(temp, final, unix.RENAME_NOREPLACE)
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS): // some network file systems
		return 0, os.Rename(temp, final)
	case !errors.Is(err, fs.ErrExist):
		return 0, err
	}
	if err := renameat2(temp, final, unix.RENAME_EXCHANGE); err != nil {
		return 0, err
	}
	old, err := os.Lstat(temp)
	if err != nil {
		return 0, nil //nolint:nilerror // the chunk has its name; what is left is found by the next count
	}
	if err := os.Remove(temp); err != nil {
		return 0, nil //nolint:nilerror // as before
	}
	return blocks(old.Size()), nil
}

func renameat2(from, to string, flags uint) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, flags)
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

// blockSize is the unit in which files and directories are counted; most file systems have it.
const blockSize = 4096

// blocks is what a file takes on the disk.
func blocks(size int64) int64 { return (size + blockSize - 1) / blockSize * blockSize }

// isChunkDir reports whether a directory may hold chunks.
func isChunkDir(name string) bool {
	return len(name) == 4 && strings.Trim(name, "0123456789abcdef") == ""
}

// attach takes part in the directory, if this Dir does not yet.
func (d *Dir) attach(m making) (*ledger, error) {
	l, needsCount, err := d.tryAttach(m)
	if err == nil && needsCount {
		d.evict(l, request{})
	}
	return l, err
}

// tryAttach opens the ledger without the lock, since that may take as long as the disk wants.
func (d *Dir) tryAttach(m making) (l *ledger, needsCount bool, err error) {
	d.mu.Lock()
	l = d.ledger
	d.mu.Unlock()
	if l != nil {
		return l, false, nil
	}
	l, needsCount, err = openLedger(d.path, d.options, m)
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

// detach forgets a directory that was removed. Others may be about to find that out.
func (d *Dir) detach(l *ledger) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ledger == l {
		d.ledger = nil
		_ = l.close()
	}
}
