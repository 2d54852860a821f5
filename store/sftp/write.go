package sftp

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/pkg/sftp"

	"cairn/store"
)

// What OpenSSH offers beside version 3; each is used if it is there.
const (
	extFsync       = "fsync@openssh.com"
	extPosixRename = "posix-rename@openssh.com"
	extHardlink    = "hardlink@openssh.com"
)

// Temporary files lie beside what they will be. Neither casync gc nor desync prune look at them, for they are not
// called like a chunk.
const (
	tempPrefix = ".cairn-"
	tempSuffix = ".tmp"
)

const (
	dirMode   = 0o755
	maxLitter = 1000
	// How often others may have taken the name again between our removing it and our renaming.
	maxReplaces = 20
)

func tempName() string { return tempPrefix + rand.Text() + tempSuffix }

func isTemp(name string) bool {
	return strings.HasPrefix(name, tempPrefix) && strings.HasSuffix(name, tempSuffix)
}

// Write implements store.Bucket. The object is written to a temporary file in its directory, flushed and renamed,
// and the directory is flushed.
//
// Of servers that lack OpenSSH's extensions this asks for less, and so they promise less. Without
// fsync@openssh.com nothing is flushed: after a power cut of the server the object may be absent, or damaged under
// its name. Without posix-rename@openssh.com an object that is replaced is removed first: for a moment, and after a
// failure just then, there is none. A server that does not let a directory be opened may lose the name, not the
// bytes, in a power cut.
//
// A Write whose context ends, or whose connection breaks, while the server renames has an error, and the object may
// be there nevertheless, whole.
func (b *Bucket) Write(ctx context.Context, name string, data []byte) error {
	return b.put(ctx, name, data, (*writing).replace)
}

// Create implements store.Creator, as Write does its work: a name is linked to only if it is free. Without
// hardlink@openssh.com it relies on the server to refuse to rename onto a file, as version 3 wants it, and looks
// first, since some servers do not.
func (b *Bucket) Create(ctx context.Context, name string, data []byte) error {
	return b.put(ctx, name, data, (*writing).create)
}

func (b *Bucket) put(ctx context.Context, name string, data []byte, publish func(*writing) error) error {
	data = slices.Clone(data) // the caller may leave before the client
	_, err := run(ctx, b, "writing", name, func(k *call, final string) (none struct{}, err error) {
		k.afterwards(k.pickUp)
		w := &writing{call: k, final: final, temp: path.Join(path.Dir(final), tempName())}
		if err = w.write(data); err == nil {
			err = publish(w)
		}
		if err != nil {
			w.discard()
		}
		return none, err
	})
	return err
}

// pickUp removes what was left when connections broke.
func (k *call) pickUp() {
	for _, temp := range k.bucket.litter.takeAll() {
		k.removeTemp(temp)
	}
}

// removeTemp removes a temporary file, or remembers it when the connection is broken.
func (k *call) removeTemp(temp string) {
	_ = k.client.Remove(temp)
	if k.failed() {
		k.bucket.litter.add(temp)
	}
}

// litter is temporary files that could not be removed when their connection broke. Safe for concurrent use.
type litter struct {
	mu    sync.Mutex // guards what follows
	temps []string
}

func (l *litter) add(temp string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.temps) < maxLitter {
		l.temps = append(l.temps, temp)
	}
}

func (l *litter) takeAll() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	temps := l.temps
	l.temps = nil
	return temps
}

// writing is one object on its way.
type writing struct {
	*call
	final, temp string
	file        *sftp.File // the temporary file, while it is open
	dir         *sftp.File // its directory, where the server opens that
}

// discard removes the temporary file.
func (w *writing) discard() {
	if w.file != nil {
		_ = w.file.Close()
	}
	w.removeTemp(w.temp)
}

// write makes the temporary file, whole and flushed.
func (w *writing) write(data []byte) error {
	err := w.open()
	for tries := 0; errors.Is(err, fs.ErrNotExist) && tries < 3; tries++ {
		if err := w.makeDir(path.Dir(w.final)); err != nil {
			return err
		}
		err = w.open()
	}
	if err != nil {
		return err
	}
	return w.fill(data)
}

// open opens the temporary file and, to flush it later, its directory; one round trip for both.
func (w *writing) open() (err error) {
	var dir *sftp.File
	var dirErr error
	var opened sync.WaitGroup
	opened.Go(func() { dir, dirErr = w.openDir(path.Dir(w.temp)) })
	w.file, err = w.call.open(w.temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	opened.Wait()
	if dir != nil {
		w.dir = dir
		w.afterwards(func() { _ = dir.Close() })
	}
	return errors.Join(err, dirErr)
}

// openDir returns nil where a directory cannot be flushed.
func (k *call) openDir(dir string) (*sftp.File, error) {
	if !k.offers(extFsync) {
		return nil, nil
	}
	f, err := k.open(dir, os.O_RDONLY)
	if err != nil && !k.failed() {
		return nil, nil // not every server opens directories
	}
	return f, err
}

// fill writes, flushes and closes the temporary file, and sets its permissions meanwhile.
func (w *writing) fill(data []byte) error {
	var mode *sftp.FileStat
	var modeErr error
	var meanwhile sync.WaitGroup
	meanwhile.Go(func() { mode, modeErr = w.attributes(w.file.Stat()) })
	err := w.writeAll(data)
	meanwhile.Wait()
	if err := errors.Join(err, modeErr); err != nil {
		return err
	}
	meanwhile.Go(func() { modeErr = w.limitMode(w.temp, mode, w.bucket.o.Mode) })
	if w.offers(extFsync) {
		err = w.check(w.file.Sync())
	}
	meanwhile.Wait()
	if err := errors.Join(err, modeErr); err != nil {
		return err
	}
	file := w.file
	w.file = nil
	return errors.Join(w.check(file.Close()), w.ctx.Err())
}

// writeAll writes as much at once as a connection has in flight, until the caller leaves.
func (w *writing) writeAll(data []byte) error {
	for off := 0; off < len(data); off += window {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		_, err := w.file.WriteAt(data[off:min(off+window, len(data))], int64(off))
		if err := w.check(err); err != nil {
			return err
		}
	}
	return w.ctx.Err()
}

// limitMode takes permissions from a new file that mode does not have. The client opens files with the server's
// default, which its umask has shaped.
func (k *call) limitMode(path string, a *sftp.FileStat, mode fs.FileMode) error {
	now := fs.FileMode(a.Mode).Perm()
	if now&mode == now {
		return nil
	}
	err := k.check(k.client.Chmod(path, now&mode))
	if !k.failed() {
		return nil // a server that keeps its own permissions
	}
	return err
}

// replace gives the temporary file its name, whatever has it.
func (w *writing) replace() error {
	if w.offers(extPosixRename) {
		return w.named(w.client.PosixRename(w.temp, w.final))
	}
	for tries := 0; ; tries++ {
		err := w.named(w.client.Rename(w.temp, w.final))
		if !errors.Is(err, sftp.ErrSSHFxFailure) || tries == maxReplaces {
			return err
		}
		err = w.removeFile(w.final)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
}

// create gives the temporary file its name if nothing has it.
func (w *writing) create() error {
	if w.offers(extHardlink) {
		err := w.named(w.client.Link(w.temp, w.final))
		if err == nil {
			return w.check(w.client.Remove(w.temp))
		}
		if !errors.Is(err, sftp.ErrSSHFxFailure) && !errors.Is(err, sftp.ErrSSHFxOpUnsupported) {
			return err
		}
	}
	if err := w.taken(); err != nil {
		return err
	}
	err := w.named(w.client.Rename(w.temp, w.final))
	if errors.Is(err, sftp.ErrSSHFxFailure) {
		return errors.Join(w.taken(), err)
	}
	return err
}

// taken is ErrExists if the name is not free.
func (w *writing) taken() error {
	_, err := w.attributes(w.client.Lstat(w.final))
	switch {
	case err == nil:
		return store.ErrExists
	case errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return err
}

// named flushes the directory after the file has got its name, unless it has not.
func (w *writing) named(err error) error {
	if err := w.check(err); err != nil || w.dir == nil {
		return err
	}
	return w.syncDir(w.dir)
}

// syncDir flushes a directory. Not every file system has that; but one that fails is an error.
func (k *call) syncDir(dir *sftp.File) error {
	err := k.check(dir.Sync())
	if !errors.Is(err, sftp.ErrSSHFxFailure) && !k.failed() {
		return nil
	}
	return err
}

// makeDir makes a directory with its parents, and flushes the name of each that it made. Most servers do not tell
// that a directory exists from other failures: what is opened there next will.
func (w *writing) makeDir(dir string) error {
	parent := path.Dir(dir)
	if dir == w.bucket.path("") && !w.bucket.o.MakeRoot {
		return fmt.Errorf("the directory %s: %w", w.bucket, store.ErrNotFound)
	}
	err := w.check(w.client.Mkdir(dir))
	if errors.Is(err, fs.ErrNotExist) && parent != dir {
		if err := w.makeDir(parent); err != nil {
			return err
		}
		err = w.check(w.client.Mkdir(dir))
	}
	if errors.Is(err, sftp.ErrSSHFxFailure) {
		return nil
	}
	if err != nil {
		return err
	}
	a, err := w.attributes(w.client.Stat(dir))
	if err == nil {
		err = w.limitMode(dir, a, dirMode)
	}
	return errors.Join(err, w.flushDir(parent))
}

func (k *call) flushDir(dir string) error {
	f, err := k.openDir(dir)
	if f == nil {
		return err
	}
	k.afterwards(func() { _ = f.Close() })
	return k.syncDir(f)
}
