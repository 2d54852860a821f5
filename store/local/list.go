package local

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cairn/store"
)

// List implements store.Lister. It enters only the directories that the prefix leads to, and yields
// only regular files. It holds the names of one directory block in memory for each level.
func (b *Bucket) List(ctx context.Context, prefix string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		root, err := b.openRoot()
		if err = ignoreNotFound(b.root, err); root == nil {
			if err != nil {
				yield(store.Object{}, err)
			}
			return
		}
		defer root.Close()
		w := walk{ctx: ctx, root: root, prefix: prefix, yield: yield}
		start := "."
		if cut := strings.LastIndexByte(prefix, '/'); cut > 0 {
			start = prefix[:cut]
			if !fs.ValidPath(start) {
				return // no object's name begins with the prefix
			}
		}
		if err := w.listDir(start); err != nil && !errors.Is(err, errStop) {
			yield(store.Object{}, err)
		}
	}
}

// errStop ends a walk after its caller has stopped the iteration.
var errStop = errors.New("stop")

// walk is the state of a List call.
type walk struct {
	ctx    context.Context
	root   *os.File
	prefix string
	yield  func(store.Object, error) bool
}

// ignoreNotFound returns nil for the absence of a directory, and another error from opening or reading
// it as readError does.
func ignoreNotFound(path string, err error) error {
	if err == nil {
		return nil
	}
	if err = readError(path, err); errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// listDir lists the objects below a directory. A missing directory is empty, and so is the name of a
// file or link.
func (w *walk) listDir(dir string) error {
	opened, err := openBelow(w.root, dir)
	if errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return ignoreNotFound(filepath.Join(w.root.Name(), dir), err)
	}
	defer opened.Close()
	err = EachName(opened, func(name string) error {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		if dir == "." && strings.HasPrefix(name, hiddenPrefix) {
			return nil
		}
		return w.visitName(opened, path.Join(dir, name))
	})
	if err == nil || errors.Is(err, errStop) || w.ctx.Err() != nil {
		return err
	}
	return ignoreNotFound(opened.Name(), err)
}

// visitName visits an entry of the directory dir. name is its name below the bucket's directory.
func (w *walk) visitName(dir *os.File, name string) error {
	if !strings.HasPrefix(name, w.prefix) && !strings.HasPrefix(w.prefix, name+"/") {
		return nil
	}
	var info unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), path.Base(name), &info, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // removed in the meantime
	case err != nil:
		return readError(filepath.Join(w.root.Name(), name), err)
	case info.Mode&unix.S_IFMT == unix.S_IFDIR:
		return w.listDir(name)
	case info.Mode&unix.S_IFMT != unix.S_IFREG || store.CheckName(name) != nil || !strings.HasPrefix(name, w.prefix):
		return nil
	}
	if !w.yield(store.Object{Name: name, Size: info.Size, Modified: time.Unix(info.Mtim.Unix())}, nil) {
		return errStop
	}
	return nil
}
