// Package mem has a bucket in memory for tests. It knows nothing of digests.
package mem

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"strings"
	"sync"
	"time"

	"cairn/store"
)

// Bucket keeps objects in a map. The zero value is an empty bucket. It is safe for concurrent use.
type Bucket struct {
	mu      sync.RWMutex // guards objects; the slices in it do not change
	objects map[string]object
}

type object struct {
	data     []byte
	modified time.Time
}

var (
	_ store.Bucket  = (*Bucket)(nil)
	_ store.Lister  = (*Bucket)(nil)
	_ store.Creator = (*Bucket)(nil)
	_ store.Remover = (*Bucket)(nil)

	_ store.RangeStreamer = (*Bucket)(nil)
)

// String implements store.Reader.
func (b *Bucket) String() string { return "memory" }

// Read implements store.Reader.
func (b *Bucket) Read(ctx context.Context, name string, dst []byte, limit int64) ([]byte, error) {
	data, err := b.findObject(ctx, name)
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("memory/%s has %d bytes: %w (%d)", name, len(data), store.ErrTooLarge, limit)
	}
	return append(dst, data...), nil
}

// StreamRange implements store.RangeStreamer.
func (b *Bucket) StreamRange(
	ctx context.Context, name string, off, n int64, use func(store.Part, io.Reader) error,
) error {
	if err := store.CheckRange(off, n); err != nil {
		return err
	}
	data, err := b.findObject(ctx, name)
	if err != nil {
		return err
	}
	size := int64(len(data))
	if off >= size {
		return fmt.Errorf("memory/%s has %d bytes: %w", name, size, store.ErrRange)
	}
	return use(store.Part{Offset: off, Size: size}, bytes.NewReader(data[off:min(off+n, size)]))
}

// Stat implements store.Reader.
func (b *Bucket) Stat(ctx context.Context, name string) (int64, error) {
	data, err := b.findObject(ctx, name)
	return int64(len(data)), err
}

func (b *Bucket) findObject(ctx context.Context, name string) ([]byte, error) {
	if err := checkRequest(ctx, name); err != nil {
		return nil, err
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	o, ok := b.objects[name]
	if !ok {
		return nil, fmt.Errorf("memory/%s: %w", name, store.ErrNotFound)
	}
	return o.data, nil
}

// Write implements store.Bucket.
func (b *Bucket) Write(ctx context.Context, name string, data []byte) error {
	return b.writeObject(ctx, name, data, true)
}

// Create implements store.Creator.
func (b *Bucket) Create(ctx context.Context, name string, data []byte) error {
	return b.writeObject(ctx, name, data, false)
}

func (b *Bucket) writeObject(ctx context.Context, name string, data []byte, replace bool) error {
	if err := checkRequest(ctx, name); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, taken := b.objects[name]; taken && !replace {
		return fmt.Errorf("memory/%s: %w", name, store.ErrExists)
	}
	if b.objects == nil {
		b.objects = map[string]object{}
	}
	b.objects[name] = object{bytes.Clone(data), time.Now()}
	return nil
}

// Remove implements store.Remover.
func (b *Bucket) Remove(ctx context.Context, name string) error {
	if _, err := b.findObject(ctx, name); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.objects, name)
	return nil
}

// List implements store.Lister. It lists a snapshot taken when the iteration begins.
func (b *Bucket) List(ctx context.Context, prefix string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		for _, o := range b.listObjects(prefix) {
			if err := ctx.Err(); err != nil {
				yield(store.Object{}, err)
				return
			}
			if !yield(o, nil) {
				return
			}
		}
	}
}

func (b *Bucket) listObjects(prefix string) (objects []store.Object) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for name, o := range b.objects {
		if strings.HasPrefix(name, prefix) {
			objects = append(objects, store.Object{Name: name, Size: int64(len(o.data)), Modified: o.modified})
		}
	}
	return objects
}

func checkRequest(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return store.CheckName(name)
}
