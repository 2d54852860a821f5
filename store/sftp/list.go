package sftp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path"
	"strings"

	"golang.org/x/sync/errgroup"

	"cairn/store"
)

const (
	listers  = 32 // directories that are read at once; each has some hundred names in memory for each level
	maxDepth = 64 // of directories in directories
)

// List implements store.Lister: of directories it enters only those that the prefix leads to, several at once, and
// of files it yields the regular ones that are not temporary.
func (b *Bucket) List(ctx context.Context, prefix string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		start := "."
		if cut := strings.LastIndexByte(prefix, '/'); cut > 0 {
			start = prefix[:cut]
			if !fs.ValidPath(start) {
				return // no object's name begins like that
			}
		}
		inner, cancel := context.WithCancel(ctx)
		defer cancel()
		w := &walk{bucket: b, prefix: prefix, found: make(chan store.Object)}
		w.group, w.ctx = errgroup.WithContext(inner)
		w.group.SetLimit(listers)
		w.group.Go(func() error { return w.enter(start, 0) })
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

// walk is a listing under way.
type walk struct {
	bucket *Bucket
	prefix string
	ctx    context.Context
	group  *errgroup.Group
	found  chan store.Object
}

// enter lists what is below a directory. One that is not there is empty.
func (w *walk) enter(dir string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("more than %d directories in each other", maxDepth)
	}
	err := w.bucket.with(w.ctx, func(c *conn) error { return w.names(c, dir, depth) })
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// names goes through a directory. The next names are on their way while some are looked at.
func (w *walk) names(c *conn, dir string, depth int) error {
	reading := func(err error) error { return fmt.Errorf("reading %s: %w", w.bucket.shown(dir), err) }
	handle, err := c.open(w.ctx, pathPacket(typeOpendir, w.bucket.path(dir)))
	if err != nil {
		return reading(err)
	}
	defer c.closeHandle(handle)
	next, err := c.start(w.ctx, pathPacket(typeReaddir, handle))
	for err == nil {
		var some []entry
		current := next
		if next, err = c.start(w.ctx, pathPacket(typeReaddir, handle)); err != nil {
			break
		}
		if some, err = w.some(c, current); err != nil {
			break
		}
		for _, e := range some {
			if err := w.visit(c, dir, e, depth); err != nil {
				return err
			}
		}
	}
	if hasCode(err, statusEOF) {
		return nil
	}
	return reading(err)
}

func (w *walk) some(c *conn, r *request) ([]entry, error) {
	a, err := c.wait(w.ctx, r)
	if err != nil {
		return nil, err
	}
	return a.entries()
}

func (w *walk) visit(c *conn, dir string, e entry, depth int) error {
	name := path.Join(dir, e.name)
	if e.name == "." || e.name == ".." || strings.Contains(e.name, "/") || !w.leads(name) {
		return nil
	}
	if !e.complete() { // the server leaves something out
		var err error
		e.attributes, err = c.attributes(w.ctx, pathPacket(typeLstat, w.bucket.path(name)))
		if hasCode(err, statusNoSuchFile) {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
	}
	switch {
	case e.isDir():
		below := func() error { return w.enter(name, depth+1) }
		if w.group.TryGo(below) {
			return nil
		}
		return below()
	case !e.isRegular(), isTemp(e.name), store.CheckName(name) != nil, !strings.HasPrefix(name, w.prefix):
		return nil
	}
	select {
	case w.found <- store.Object{Name: name, Size: int64(e.size)}:
		return nil
	case <-w.ctx.Done():
		return w.ctx.Err()
	}
}

// leads says whether the prefix begins or ends in what is called name.
func (w *walk) leads(name string) bool {
	return strings.HasPrefix(name, w.prefix) || strings.HasPrefix(w.prefix, name+"/")
}
