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

// NewBatch implements store.Batcher. The batch costs two flushes of the file system in all, however many
// objects there are, and no memory for those that wait: the list of them is the stage itself.
func (b *Bucket) NewBatch() (store.Batch, error) {
	s, err := b.newStage()
	if err != nil {
		return nil, err
	}
	return &batch{bucket: b, stage: s, seed: maphash.MakeSeed()}, nil
}

// batch keeps each object in its stage, under readyPrefix and its escaped name, until Commit.
type batch struct {
	bucket *Bucket
	stage  *stage
	mu     sync.RWMutex // held shared by Write and alone by Commit, which must not meet unfinished files
	failed error        // of a flush, which is told once of what was lost; Commit's
	dirty  atomic.Bool  // something waits for Commit
	seed   maphash.Seed
	turns  [64]sync.Mutex // of those who write, by the name
}

const readyPrefix = "ready-"

func (t *batch) Write(ctx context.Context, name string, data []byte) error {
	if err := check(ctx, name); err != nil {
		return err
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	if err := t.add(readyPrefix+url.PathEscape(name), data); err != nil {
		return t.bucket.writing(name, err)
	}
	t.dirty.Store(true)
	return nil
}

// add writes a file of a name in the stage, whole or not at all. Of those who write the same name one does it
// at a time, and the last one's stays.
func (t *batch) add(ready string, data []byte) error {
	turn := &t.turns[maphash.String(t.seed, ready)%uint64(len(t.turns))]
	turn.Lock()
	defer turn.Unlock()
	mode := t.bucket.options.Mode
	err := t.stage.write(ready, data, mode, unflushed)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	temp, err := t.stage.add(data, mode, unflushed)
	if err != nil {
		return err
	}
	return unix.Renameat(t.stage.fd(), temp, t.stage.fd(), ready)
}

func (t *batch) Commit(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	// Also when nothing was written: what was found here may be another writer's, who has not flushed it yet, or never
	// will.
	if err := t.flush(); err != nil || !t.dirty.Load() {
		return err
	}
	if err := t.publish(ctx); err != nil {
		return err
	}
	if err := t.flush(); err != nil {
		return err
	}
	t.dirty.Store(false)
	return nil
}

// flush writes back the whole file system: one barrier for any number of files and names. The lock was
// opened before the first of them was written, so that the kernel tells it of every failure since. It tells that
// once, so that no flush mends one that failed.
func (t *batch) flush() error {
	if t.failed != nil {
		return t.failed
	}
	if err := unix.Syncfs(int(t.stage.lock.Fd())); err != nil {
		t.failed = fmt.Errorf("flushing the file system of %s: %w", t.bucket.root, err)
	}
	return t.failed
}

// publish gives every object in the stage its name. It looks until none is left: some file systems pass over names in a
// directory that others are just taken out of.
func (t *batch) publish(ctx context.Context) error {
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

// publishOnce is publish for those that one reading of the directory finds, and returns how many that were.
func (t *batch) publishOnce(ctx context.Context) (n int, err error) {
	err = eachName(t.stage.dir, func(file string) error {
		escaped, ready := strings.CutPrefix(file, readyPrefix)
		if !ready {
			return nil
		}
		n++
		name, err := url.PathUnescape(escaped)
		if err := errors.Join(ctx.Err(), err); err != nil {
			return err
		}
		if err := t.stage.into(file, name, false); err != nil {
			return t.bucket.writing(name, err)
		}
		return nil
	})
	return n, err
}

func (t *batch) Close() error { return t.stage.close() }
