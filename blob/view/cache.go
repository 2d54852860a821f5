package view

import (
	"container/list"
	"context"
	"sync"

	"golang.org/x/sync/semaphore"

	"cairn/blob"
	"cairn/store"
)

// Limits of a Cache. The zero value of a field is its default.
type Limits struct {
	Bytes   int64 // of chunks kept in memory, besides those in use; default 64 MiB. One is always kept
	Fetches int   // chunks asked of the store at once, as far as Bytes has room for them; default 64
}

// Cache gets chunks, each once however many ask for it at the same time, and keeps what was used last.
// A failure is not kept: who asks next, asks the store again. Safe for concurrent use.
type Cache struct {
	ctx     context.Context // of the fetches, which outlive who asked first
	end     context.CancelFunc
	from    store.Getter
	limit   int64
	fetches chan struct{}       // a token for each fetch under way
	room    *semaphore.Weighted // bytes of the fetches under way, at most limit
	running sync.WaitGroup

	mu     sync.Mutex // guards what follows
	chunks map[key]*entry
	recent *list.List // of the entries whose bytes are here; last used first
	bytes  int64      // in recent
	onWay  int64      // bytes of the chunks being fetched
}

// key has the size too: indexes may disagree about it, and what is proven for one size is not for another.
type key struct {
	digest blob.Digest
	size   int64
}

func keyOf(c blob.Chunk) key { return key{c.Digest, c.Size} }

// entry is a chunk that is here, or on its way.
type entry struct {
	key   key
	data  []byte        // nil until it is here
	ready chan struct{} // closed when data or err is set
	err   error
	place *list.Element // in recent, when data is here
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
	c.room = semaphore.NewWeighted(c.limit)
	c.ctx, c.end = context.WithCancel(ctx)
	c.chunks, c.recent = map[key]*entry{}, list.New()
	return c
}

// Close ends the fetches that are under way, and returns when none is left. No other begins afterwards.
func (c *Cache) Close() {
	c.mu.Lock()
	c.end()
	c.mu.Unlock()
	c.running.Wait()
}

// here is the chunk's bytes if they are in memory, else nil. They must not be changed.
func (c *Cache) here(k key) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.use(k); e != nil {
		return e.data
	}
	return nil
}

// start makes sure that the chunk is here or on its way.
func (c *Cache) start(k key) *entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.use(k); e != nil {
		return e
	}
	return c.begin(k)
}

// prefetch is start for a chunk that nobody waits for. It refuses when half a cache is on its way: more
// would pile up, and push out what was not read yet.
func (c *Cache) prefetch(k key) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.use(k) != nil {
		return true
	}
	if c.onWay+k.size > c.limit/2 {
		return false
	}
	c.begin(k)
	return true
}

// use is the entry of a chunk that is here or on its way, else nil. The caller holds mu.
func (c *Cache) use(k key) *entry {
	e := c.chunks[k]
	if e != nil && e.place != nil {
		c.recent.MoveToFront(e.place)
	}
	return e
}

// begin starts a fetch, unless the cache is closed. The caller holds mu.
func (c *Cache) begin(k key) *entry {
	e := &entry{key: k, ready: make(chan struct{})}
	if e.err = c.ctx.Err(); e.err != nil {
		close(e.ready)
		return e
	}
	c.chunks[k] = e
	c.onWay += k.size
	c.running.Go(func() { c.fetch(e) })
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

func (c *Cache) fetch(e *entry) {
	data, err := c.get(e.key)
	c.mu.Lock()
	defer c.mu.Unlock()
	defer close(e.ready)
	c.onWay -= e.key.size
	if err != nil {
		e.err = err
		delete(c.chunks, e.key)
		return
	}
	e.data = data
	e.place = c.recent.PushFront(e)
	c.bytes += e.key.size
	c.evict()
}

func (c *Cache) get(k key) ([]byte, error) {
	select {
	case c.fetches <- struct{}{}:
		defer func() { <-c.fetches }()
	case <-c.ctx.Done():
		return nil, c.ctx.Err()
	}
	room := min(k.size, c.limit)
	if err := c.room.Acquire(c.ctx, room); err != nil {
		return nil, err
	}
	defer c.room.Release(room)
	data := make([]byte, k.size)
	if err := c.from.Get(c.ctx, k.digest, data); err != nil {
		return nil, err
	}
	return data, nil
}

// evict drops what was not used for longest until the rest fits. Who reads an entry keeps its bytes.
func (c *Cache) evict() {
	for c.bytes > c.limit && c.recent.Len() > 1 {
		e := c.recent.Remove(c.recent.Back()).(*entry)
		delete(c.chunks, e.key)
		c.bytes -= e.key.size
	}
}
