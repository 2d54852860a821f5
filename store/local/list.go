package local

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"os"
	"path"
	"strings"

	"cairn/store"
)

// List implements store.Lister. It enters only the directories that the prefix leads to, and yields
// only regular files. It holds the names of one directory block in memory for each level.
func (b *Bucket) List(ctx context.Context, prefix string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		w := walk{ctx: ctx, bucket: b, prefix: prefix, yield: yield}
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
	bucket *Bucket
	prefix string
	yield  func(store.Object, error) bool
}

// listDir lists the objects below a directory. A missing directory is empty.
func (w *walk) listDir(dir string) error {
	err := eachName(w.bucket.path(dir), func(name string) error {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		if dir == "." && strings.HasPrefix(name, hiddenPrefix) {
			return nil
		}
		return w.visitName(path.Join(dir, name))
	})
	if err == nil || errors.Is(err, errStop) || w.ctx.Err() != nil {
		return err
	}
	if err = readError(w.bucket.path(dir), err); errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

func (w *walk) visitName(name string) error {
	if !strings.HasPrefix(name, w.prefix) && !strings.HasPrefix(w.prefix, name+"/") {
		return nil
	}
	info, err := os.Lstat(w.bucket.path(name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // removed in the meantime
	case err != nil:
		return readError(w.bucket.path(name), err)
	case info.IsDir():
		return w.listDir(name)
	case !info.Mode().IsRegular() || store.CheckName(name) != nil || !strings.HasPrefix(name, w.prefix):
		return nil
	}
	if !w.yield(store.Object{Name: name, Size: info.Size()}, nil) {
		return errStop
	}
	return nil
}
