package view

import (
	"container/list"
	"context"
	"sync"

	"cairn/blob"
	"cairn/store"
)

// Limits of a Cache. The zero value of a field is its default.
type Limits struct {
	Bytes   int64 // of chunks kept in memory, besides those in use; default 64 MiB
	Fetches int   // chunks asked of the store at once; default 64
}

// Cache gets chunks, each once however many ask for it at the same time, and keeps what was used last.
// A failure is not kept: who asks next, asks the store again. Safe for concurrent use.
type Cache struct {
	ctx     context.Context // of the fetches, which outlive who asked first
	end     context.CancelFunc
	from    store.Getter
	limit   int64
	fetches chan struct{} // a token for each fetch under way
	running sync.WaitGroup

	mu     sync.Mutex // guards what follows
	chunks map[blob.Digest]*entry
	recent *list.List // of the entries whose bytes are here; last used first
	bytes  int64      // in recent
}

// entry is a chunk that is here, or on its way.
type entry struct {
	digest blob.Digest
	data   []byte
	ready  chan struct{} // closed when data or err is set
	err    error
	place  *list.Element // in recent, when data is here
}

// NewCache makes a cache before from. Its fetches end with ctx, or with Close.
func NewCache(ctx context.Context, from store.Getter, limits Limits) *Cache {
	if limits.Bytes <= 0 {
		limits.Bytes = 64 << 20
	}
	if limits.Fetches <= 0 {
		limits.Fetches = 64
	}
	c := &Cache{from: from, limit: limits.Bytes, fetches: make(chan struct{}, limits.Fetches)}
	c.ctx, c.end = context.WithCancel(ctx)
	c.chunks, c.recent = map[blob.Digest]*entry{}, list.New()
	return c
}

// Close ends the fetches that are under way, and returns when none is left.
func (c *Cache) Close() {
	c.end()
	c.running.Wait()
}

// here is the chunk's bytes if they are in memory, else nil. They must not be changed.
func (c *Cache) here(d blob.Digest) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.chunks[d]
	if e == nil || e.place == nil {
		return nil
	}
	c.recent.MoveToFront(e.place)
	return e.data
}

// start makes sure that the chunk is here or on its way.
func (c *Cache) start(d blob.Digest, size int64) *entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.chunks[d]; e != nil {
		if e.place != nil {
			c.recent.MoveToFront(e.place)
		}
		return e
	}
	e := &entry{digest: d, ready: make(chan struct{})}
	c.chunks[d] = e
	c.running.Go(func() { c.fetch(e, size) })
	return e
}

// wait returns the entry's bytes, which must not be changed. Giving up does not end the fetch.
func (e *entry) wait(ctx context.Context) ([]byte, error) {
	select {
	case <-e.ready:
		return e.data, e.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (c *Cache) fetch(e *entry, size int64) {
	data, err := c.get(e.digest, size)
	c.mu.Lock()
	defer c.mu.Unlock()
	defer close(e.ready)
	if err != nil {
		e.err = err
		delete(c.chunks, e.digest)
		return
	}
	e.data = data
	e.place = c.recent.PushFront(e)
	c.bytes += size
	c.evict()
}

func (c *Cache) get(d blob.Digest, size int64) ([]byte, error) {
	select {
	case c.fetches <- struct{}{}:
		defer func() { <-c.fetches }()
	case <-c.ctx.Done():
		return nil, c.ctx.Err()
	}
	data := make([]byte, size)
	if err := c.from.Get(c.ctx, d, data); err != nil {
		return nil, err
	}
	return data, nil
}

// evict drops what was not used for longest until the rest fits. Who reads an entry keeps its bytes.
func (c *Cache) evict() {
	for c.bytes > c.limit && c.recent.Len() > 1 {
		e := c.recent.Remove(c.recent.Back()).(*entry)
		delete(c.chunks, e.digest)
		c.bytes -= int64(len(e.data))
	}
}
