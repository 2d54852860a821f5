package sftp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"cairn/store"
)

const (
	maxListers = 32 // directories read at once
	maxDepth   = 64 // nested directories
)

// List implements store.Lister. It enters only the directories that the prefix leads to, several at
// once. It yields only regular files that are not temporary.
func (b *Bucket) List(ctx context.Context, prefix string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		start := "."
		if cut := strings.LastIndexByte(prefix, '/'); cut > 0 {
			start = prefix[:cut]
			if !fs.ValidPath(start) {
				return // no object's name begins with the prefix
			}
		}
		inner, cancel := context.WithCancel(ctx)
		defer cancel()
		w := &walk{bucket: b, prefix: prefix, found: make(chan store.Object)}
		w.group, w.ctx = errgroup.WithContext(inner)
		w.group.SetLimit(maxListers)
		w.group.Go(func() error { return w.listDir(start, 0) })
		ended := make(chan error, 1)
		go func() {
			ended <- w.group.Wait()
			close(w.found)
		}()
		stopped := false
		for object := range w.found {
			if !stopped && !yield(object, nil) {
				stopped = true
				cancel()
			}
		}
		err := <-ended
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		if err != nil && !stopped {
			yield(store.Object{}, fmt.Errorf("listing %s: %w", b, err))
		}
	}
}

// walk is the state of a List call.
type walk struct {
	bucket *Bucket
	prefix string
	ctx    context.Context
	group  *errgroup.Group
	found  chan store.Object
}

// listDir lists the objects below a directory. A missing directory is empty.
func (w *walk) listDir(dir string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("directories are nested more than %d deep", maxDepth)
	}
	entries, err := runCall(w.ctx, w.bucket, func(k *call) ([]entry, error) { return w.readEntries(k, dir) })
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading %s: %w", w.bucket.objectURL(dir), err)
	}
	for _, e := range entries {
		if err := w.visitEntry(e, depth); err != nil {
			return err
		}
	}
	return nil
}

// entry is a directory or an object in a directory.
type entry struct {
	store.Object
	isDir bool
}

// readEntries returns the entries of a directory that List enters or yields.
func (w *walk) readEntries(k *call, dir string) (entries []entry, err error) {
	infos, err := k.readDir(w.ctx, w.bucket.path(dir))
	if err != nil {
		return nil, err
	}
	for _, info := range infos {
		name := path.Join(dir, info.Name())
		if store.CheckName(info.Name()) != nil || isTemp(info.Name()) || !w.matches(name) {
			continue
		}
		a, err := k.attributes(info, nil)
		if err == nil && a.Mode&modeType == 0 { // the server omits the type
			a, err = k.attributes(k.client.Lstat(w.bucket.path(name)))
		}
		switch {
		case errors.Is(err, fs.ErrNotExist): // removed in the meantime
		case err != nil:
			return nil, err
		case a.Mode&modeType == modeDir:
			entries = append(entries, entry{store.Object{Name: name}, true})
		case a.Mode&modeType == modeRegular && strings.HasPrefix(name, w.prefix):
			entries = append(entries, entry{store.Object{Name: name, Size: int64(a.Size), Modified: time.Unix(int64(a.Mtime), 0)}, false})
		}
	}
	return entries, nil
}

func (w *walk) visitEntry(e entry, depth int) error {
	if e.isDir {
		below := func() error { return w.listDir(e.Name, depth+1) }
		if w.group.TryGo(below) {
			return nil
		}
		return below()
	}
	select {
	case w.found <- e.Object:
		return nil
	case <-w.ctx.Done():
		return w.ctx.Err()
	}
}

// matches reports whether name begins with the prefix, or is a directory that the prefix leads to.
func (w *walk) matches(name string) bool {
	return strings.HasPrefix(name, w.prefix) || strings.HasPrefix(w.prefix, name+"/")
}
