package local

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"cairn/store"
)

// NewBatch implements store.Batcher. The batch costs two flushes of the file system in all, however
// many objects there are. It uses no memory for pending objects: the stage directory itself lists
// them.
func (b *Bucket) NewBatch() (store.Batch, error) {
	s, err := b.newStage()
	if err != nil {
		return nil, err
	}
	return &batch{bucket: b, stage: s, seed: maphash.MakeSeed()}, nil
}

// batch keeps each object in its stage, under readyPrefix and its escaped name, until Commit.
type batch struct {
	bucket    *Bucket
	stage     *stage
	mu        sync.RWMutex // read-locked by Write, locked by Commit, which must not publish unfinished files
	failed    error        // the first flush error; the kernel reports a lost write once, so Commit keeps failing
	dirty     atomic.Bool  // an object was written since the last Commit
	seed      maphash.Seed
	nameLocks [64]sync.Mutex // serialize the writers of a name; the name's hash selects one
}

const readyPrefix = "ready-"

func (t *batch) Write(ctx context.Context, name string, data []byte) error {
	if err := checkCall(ctx, name); err != nil {
		return err
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	if err := t.addFile(readyPrefix+url.PathEscape(name), data); err != nil {
		return t.bucket.writeError(name, err)
	}
	t.dirty.Store(true)
	return nil
}

// addFile writes a file with the given name in the stage, or leaves the old one after an error.
// Writers of the same name run one at a time, and the last one wins.
func (t *batch) addFile(ready string, data []byte) error {
	lock := &t.nameLocks[maphash.String(t.seed, ready)%uint64(len(t.nameLocks))]
	lock.Lock()
	defer lock.Unlock()
	mode := t.bucket.options.Mode
	err := t.stage.writeFile(ready, data, mode, unflushed)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	temp, err := t.stage.addTemp(data, mode, unflushed)
	if err != nil {
		return err
	}
	return unix.Renameat(t.stage.dirFD(), temp, t.stage.dirFD(), ready)
}

func (t *batch) Commit(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	// Flush even when nothing was written. The caller may have skipped an object that another
	// writer has written and not flushed.
	if err := t.flushAll(); err != nil || !t.dirty.Load() {
		return err
	}
	if err := t.publishAll(ctx); err != nil {
		return err
	}
	if err := t.flushAll(); err != nil {
		return err
	}
	t.dirty.Store(false)
	return nil
}

// flushAll writes back the whole file system: one barrier for any number of files and names. The
// lock file was opened before the first of them was written, so the kernel reports to it every
// write error since then. The kernel reports an error once, so a later flush cannot make up for a
// failed one.
func (t *batch) flushAll() error {
	if t.failed != nil {
		return t.failed
	}
	if err := unix.Syncfs(int(t.stage.lock.Fd())); err != nil {
		t.failed = fmt.Errorf("flushing the file system of %s: %w", t.bucket.root, err)
	}
	return t.failed
}

// publishAll gives every object in the stage its name. It reads the directory again until no object
// is left: some file systems skip names in a directory while others are removed from it.
func (t *batch) publishAll(ctx context.Context) error {
	for {
		n, err := t.publishOnce(ctx)
		if err != nil {
			return fmt.Errorf("committing: %w", err)
		}
		if n == 0 {
			return nil
		}
	}
}

// publishOnce publishes the objects that one reading of the directory finds, and returns their
// number.
func (t *batch) publishOnce(ctx context.Context) (n int, err error) {
	err = eachName(t.stage.self, func(file string) error {
		escaped, ready := strings.CutPrefix(file, readyPrefix)
		if !ready {
			return nil
		}
		n++
		name, err := url.PathUnescape(escaped)
		if err == nil {
			err = store.CheckName(name)
		}
		if err := errors.Join(ctx.Err(), err); err != nil {
			return err
		}
		if err := t.stage.publish(file, name, false); err != nil {
			return t.bucket.writeError(name, err)
		}
		return nil
	})
	return n, err
}

func (t *batch) Close() error { return t.stage.close() }
