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
	Bytes   int64 // of chunks that are kept or being fetched; default 64 MiB. One is always kept
	Fetches int   // chunks asked of the store at once, as far as Bytes has room for them; default 64
}

// Cache gets chunks, each once however many ask for it at the same time, and keeps what was used last.
// A failure is not kept: who asks next, asks the store again. Safe for concurrent use.
type Cache struct {
	ctx     context.Context // of the fetches, which outlive who asked first
	end     context.CancelFunc
	from    store.Getter
	limit   int64
	slots   store.Slots
	spare   *semaphore.Weighted // of the slots, those that chunks nobody waits for may take
	room    *semaphore.Weighted // bytes of the fetches under way, at most limit
	running sync.WaitGroup

	mu     sync.Mutex // guards what follows
	chunks map[key]*entry
	recent *list.List // of the entries whose bytes are here; last used first
	bytes  int64      // in recent
	taken  int64      // of room
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
	hurry func()        // says that somebody waits for the chunk; nil if it was fetched for that
}

// NewCache makes a cache before from. Its fetches end with ctx, or with Close.
func NewCache(ctx context.Context, from store.Getter, limits Limits) *Cache {
	if limits.Bytes <= 0 {
		limits.Bytes = 64 << 20
	}
	if limits.Fetches <= 0 {
		limits.Fetches = 64
	}
	c := &Cache{from: from, limit: limits.Bytes, slots: make(store.Slots, limits.Fetches)}
	c.spare = semaphore.NewWeighted(spareSlots(limits.Fetches))
	c.room = semaphore.NewWeighted(c.limit)
	c.ctx, c.end = context.WithCancel(ctx)
	c.chunks, c.recent = map[key]*entry{}, list.New()
	return c
}

// spareSlots leaves some slots to those who wait, if there are several.
func spareSlots(all int) int64 { return int64(all - all/4) }

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

// start makes sure that the chunks are here or on their way, as somebody waits for them.
func (c *Cache) start(keys []key) []*entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	entries := make([]*entry, len(keys))
	for i, k := range keys {
		e := c.use(k)
		if e == nil {
			e = c.add(k)
			c.begin(e)
		}
		if e.hurry != nil {
			e.hurry()
		}
		entries[i] = e
	}
	return entries
}

// prefetch is start for chunks that nobody waits for, and returns how many of them it took. It refuses when
// half a cache is on its way: more would pile up, and push out what was not read yet.
func (c *Cache) prefetch(keys []key) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, k := range keys {
		if c.use(k) != nil {
			continue
		}
		if c.onWay+k.size > c.limit/2 {
			return i
		}
		c.beginAhead(c.add(k))
	}
	return len(keys)
}

// use is the entry of a chunk that is here or on its way, else nil. The caller holds mu.
func (c *Cache) use(k key) *entry {
	e := c.chunks[k]
	if e != nil && e.place != nil {
		c.recent.MoveToFront(e.place)
	}
	return e
}

// add makes an entry for a chunk that is not here, which the caller begins to fetch. The caller holds mu.
func (c *Cache) add(k key) *entry {
	e := &entry{key: k, ready: make(chan struct{})}
	c.chunks[k] = e
	c.onWay += k.size
	return e
}

// begin starts to fetch an entry. The caller holds mu.
func (c *Cache) begin(e *entry) {
	if c.refused(e) {
		return
	}
	c.running.Go(func() { c.fetch(e) })
}

// beginAhead fetches when enough of the slots are free, or when somebody is in a hurry. The caller holds mu.
func (c *Cache) beginAhead(e *entry) {
	if c.refused(e) {
		return
	}
	patience, hurry := context.WithCancel(c.ctx)
	e.hurry = hurry
	c.running.Go(func() {
		defer hurry()
		if c.spare.Acquire(patience, 1) == nil {
			defer c.spare.Release(1)
		}
		c.fetch(e)
	})
}

// refused fails an entry if the cache is closed. The caller holds mu.
func (c *Cache) refused(e *entry) bool {
	if c.ctx.Err() != nil {
		c.fail(e, c.ctx.Err())
		return true
	}
	return false
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
	if err != nil {
		c.fail(e, err)
		return
	}
	c.keep(e, data)
}

func (c *Cache) get(k key) ([]byte, error) {
	room := min(k.size, c.limit)
	if err := c.room.Acquire(c.ctx, room); err != nil {
		return nil, err
	}
	c.take(room)
	defer c.room.Release(room)
	defer c.take(-room)
	leave, err := c.slots.Take(c.ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	data := make([]byte, k.size)
	return data, c.from.Get(c.ctx, k.digest, data)
}

// take notes that room was taken, and has the cache make it.
func (c *Cache) take(room int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.taken += room
	c.evict()
}

// keep takes an entry's bytes in. The caller holds mu.
func (c *Cache) keep(e *entry, data []byte) {
	c.onWay -= e.key.size
	c.bytes += e.key.size
	e.data, e.hurry = data, nil
	e.place = c.recent.PushFront(e)
	close(e.ready)
	c.evict()
}

// fail tells all who wait for an entry, and forgets it. The caller holds mu.
func (c *Cache) fail(e *entry, err error) {
	c.onWay -= e.key.size
	delete(c.chunks, e.key)
	e.err = err
	close(e.ready)
}

// evict drops what was not used for longest until the rest fits, beside what is being fetched. Who reads an
// entry keeps its bytes.
func (c *Cache) evict() {
	for c.bytes+c.taken > c.limit && c.recent.Len() > 1 {
		e := c.recent.Remove(c.recent.Back()).(*entry)
		delete(c.chunks, e.key)
		c.bytes -= e.key.size
	}
}
