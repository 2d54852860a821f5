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

// OpenSSH's extensions of version 3. Each is used if the server offers it.
const (
	extFsync       = "fsync@openssh.com"
	extPosixRename = "posix-rename@openssh.com"
	extHardlink    = "hardlink@openssh.com"
)

// Temporary files lie in the directory of their object. casync gc and desync prune ignore them,
// because they are not named like chunks.
const (
	tempPrefix = ".cairn-"
	tempSuffix = ".tmp"
)

const (
	dirMode    = 0o755
	maxOrphans = 1000
	// maxReplaces limits how often renameOver tries again because another writer has taken the name
	// between remove and rename.
	maxReplaces = 20
)

func tempName() string { return tempPrefix + rand.Text() + tempSuffix }

func isTemp(name string) bool {
	return strings.HasPrefix(name, tempPrefix) && strings.HasSuffix(name, tempSuffix)
}

// Write implements store.Bucket. It writes the object to a temporary file in its directory, flushes
// and renames the file, and flushes the directory.
//
// Servers without OpenSSH's extensions give weaker guarantees. Without fsync@openssh.com nothing is
// flushed: after a power cut of the server the object may be absent, or damaged under its name.
// Without posix-rename@openssh.com a replaced object is removed first: until the rename, or after a
// failure before it, there is none. If the server does not open directories, a power cut may lose
// the name, but not the bytes.
//
// A Write whose context ends, or whose connection breaks, during the rename returns an error. The
// object may exist nevertheless, and is then complete.
func (b *Bucket) Write(ctx context.Context, name string, data []byte) error {
	return b.writeObject(ctx, name, data, (*objectWriter).renameOver)
}

// Create implements store.Creator. It flushes as Write does, and links the name, which fails if the
// name is taken. Without hardlink@openssh.com it relies on the server to refuse a rename onto a
// file, as version 3 demands. It checks first whether the name is free, since some servers do not
// refuse.
func (b *Bucket) Create(ctx context.Context, name string, data []byte) error {
	return b.writeObject(ctx, name, data, (*objectWriter).linkNew)
}

func (b *Bucket) writeObject(ctx context.Context, name string, data []byte, publish func(*objectWriter) error) error {
	data = slices.Clone(data) // the caller may return before the client has sent it
	_, err := runOnObject(ctx, b, "writing", name, func(k *call, final string) (none struct{}, err error) {
		k.runLater(func() {
			for _, temp := range k.bucket.orphans.takeAll() {
				k.removeTemp(temp)
			}
		})
		w := &objectWriter{call: k, final: final, temp: path.Join(path.Dir(final), tempName())}
		if err = w.writeTemp(data); err == nil {
			err = publish(w)
		}
		if err != nil {
			w.discard()
		}
		return none, err
	})
	return err
}

// removeTemp removes a temporary file, or adds it to the orphans if the connection is broken.
func (k *call) removeTemp(temp string) {
	_ = k.client.Remove(temp)
	if k.failed() {
		k.bucket.orphans.add(temp)
	}
}

// orphanTemps is the list of temporary files that remained when their connection broke. It is safe
// for concurrent use.
type orphanTemps struct {
	mu    sync.Mutex // guards temps
	temps []string
}

func (l *orphanTemps) add(temp string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.temps) < maxOrphans {
		l.temps = append(l.temps, temp)
	}
}

func (l *orphanTemps) takeAll() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	temps := l.temps
	l.temps = nil
	return temps
}

// objectWriter is the state of writing one object.
type objectWriter struct {
	*call
	final, temp string
	file        *sftp.File // the temporary file, while it is open
	dir         *sftp.File // its directory; nil if the server cannot flush directories
}

// discard removes the temporary file.
func (w *objectWriter) discard() {
	if w.file != nil {
		_ = w.file.Close()
	}
	w.removeTemp(w.temp)
}

// writeTemp makes the temporary file, complete and flushed.
func (w *objectWriter) writeTemp(data []byte) error {
	err := w.openTemp()
	for tries := 0; errors.Is(err, fs.ErrNotExist) && tries < 3; tries++ {
		if err := w.makeDir(path.Dir(w.final)); err != nil {
			return err
		}
		err = w.openTemp()
	}
	if err != nil {
		return err
	}
	return w.fillTemp(data)
}

// openTemp opens the temporary file and its directory, which is flushed later, in one round trip.
func (w *objectWriter) openTemp() (err error) {
	var dir *sftp.File
	var dirErr error
	var opened sync.WaitGroup
	opened.Go(func() { dir, dirErr = w.openDir(path.Dir(w.temp)) })
	w.file, err = w.call.openFile(w.temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	opened.Wait()
	if dir != nil {
		w.dir = dir
		w.runLater(func() { _ = dir.Close() })
	}
	return errors.Join(err, dirErr)
}

// openDir opens a directory to flush it. It returns nil if the server cannot do that.
func (k *call) openDir(dir string) (*sftp.File, error) {
	if !k.hasExtension(extFsync) {
		return nil, nil
	}
	f, err := k.openFile(dir, os.O_RDONLY)
	if err != nil && !k.failed() {
		return nil, nil // not every server opens directories
	}
	return f, err
}

// fillTemp writes, flushes and closes the temporary file, and sets its permissions concurrently.
func (w *objectWriter) fillTemp(data []byte) error {
	var mode *sftp.FileStat
	var modeErr error
	var concurrent sync.WaitGroup
	concurrent.Go(func() { mode, modeErr = w.attributes(w.file.Stat()) })
	err := w.writeAll(data)
	concurrent.Wait()
	if err := errors.Join(err, modeErr); err != nil {
		return err
	}
	concurrent.Go(func() { modeErr = w.limitMode(w.temp, mode, w.bucket.o.Mode) })
	if w.hasExtension(extFsync) {
		err = w.convertError(w.file.Sync())
	}
	concurrent.Wait()
	if err := errors.Join(err, modeErr); err != nil {
		return err
	}
	file := w.file
	w.file = nil
	return errors.Join(w.convertError(file.Close()), w.ctx.Err())
}

// writeAll writes data in pieces of readWindow bytes, and stops when the caller's context ends.
func (w *objectWriter) writeAll(data []byte) error {
	for off := 0; off < len(data); off += readWindow {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		_, err := w.file.WriteAt(data[off:min(off+readWindow, len(data))], int64(off))
		if err := w.convertError(err); err != nil {
			return err
		}
	}
	return w.ctx.Err()
}

// limitMode removes the permissions that mode lacks from a new file. The client opens files with
// the server's default permissions, less its umask.
func (k *call) limitMode(path string, a *sftp.FileStat, mode fs.FileMode) error {
	now := fs.FileMode(a.Mode).Perm()
	if now&mode == now {
		return nil
	}
	err := k.convertError(k.client.Chmod(path, now&mode))
	if !k.failed() {
		return nil // the server does not change permissions
	}
	return err
}

// renameOver gives the temporary file its name, and replaces a file of that name.
func (w *objectWriter) renameOver() error {
	if w.hasExtension(extPosixRename) {
		return w.flushName(w.client.PosixRename(w.temp, w.final))
	}
	for tries := 0; ; tries++ {
		err := w.flushName(w.client.Rename(w.temp, w.final))
		if !errors.Is(err, sftp.ErrSSHFxFailure) || tries == maxReplaces {
			return err
		}
		err = w.removeFile(w.final)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
}

// linkNew gives the temporary file its name if the name is free.
func (w *objectWriter) linkNew() error {
	if w.hasExtension(extHardlink) {
		err := w.flushName(w.client.Link(w.temp, w.final))
		if err == nil {
			return w.convertError(w.client.Remove(w.temp))
		}
		if !errors.Is(err, sftp.ErrSSHFxFailure) && !errors.Is(err, sftp.ErrSSHFxOpUnsupported) {
			return err
		}
	}
	if err := w.checkFree(); err != nil {
		return err
	}
	err := w.flushName(w.client.Rename(w.temp, w.final))
	if errors.Is(err, sftp.ErrSSHFxFailure) {
		return errors.Join(w.checkFree(), err)
	}
	return err
}

// checkFree returns store.ErrExists if the object's name is taken.
func (w *objectWriter) checkFree() error {
	_, err := w.attributes(w.client.Lstat(w.final))
	switch {
	case err == nil:
		return store.ErrExists
	case errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return err
}

// flushName flushes the directory after the file got its name. It returns the error of that step,
// if there was one.
func (w *objectWriter) flushName(err error) error {
	if err := w.convertError(err); err != nil || w.dir == nil {
		return err
	}
	return w.syncDir(w.dir)
}

// syncDir flushes a directory. It ignores a file system that does not support that, but reports a
// failed flush.
func (k *call) syncDir(dir *sftp.File) error {
	err := k.convertError(dir.Sync())
	if !errors.Is(err, sftp.ErrSSHFxFailure) && !k.failed() {
		return nil
	}
	return err
}

// makeDir makes a directory and its missing parents, and flushes the name of each one that it made.
// It ignores a generic failure, because most servers do not distinguish an existing directory from
// other failures: the next open in the directory reports a real one.
func (w *objectWriter) makeDir(dir string) error {
	parent := path.Dir(dir)
	if dir == w.bucket.path("") && !w.bucket.o.MakeRoot {
		return fmt.Errorf("the directory %s: %w", w.bucket, store.ErrNotFound)
	}
	err := w.convertError(w.client.Mkdir(dir))
	if errors.Is(err, fs.ErrNotExist) && parent != dir {
		if err := w.makeDir(parent); err != nil {
			return err
		}
		err = w.convertError(w.client.Mkdir(dir))
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
	k.runLater(func() { _ = f.Close() })
	return k.syncDir(f)
}
