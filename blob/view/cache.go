package view

import (
	"cmp"
	"container/list"
	"context"
	"errors"
	"log/slog"
	"sync"

	"cairn/blob"
	"cairn/blob/view/imagecache"
	"cairn/store"
)

// Limits of a Cache. The zero value of a field is its default.
type Limits struct {
	Bytes   int64           // of chunks that are kept or being fetched; default 64 MiB. One is always kept
	Fetches int             // chunks asked at once of a source that has no number of its own, as far as Bytes has room; default 64
	Disk    *imagecache.Dir // where chunks of other images may be found; may be nil
	Log     *slog.Logger    // hears of stores that do not answer; nil is nobody
}

// Cache gets chunks, each once however many ask for it at the same time, and keeps what was used last.
// A failure is not kept: who asks next, asks the store again. Safe for concurrent use.
type Cache struct {
	ctx     context.Context // of the fetches, which outlive who asked first
	end     context.CancelFunc
	limits  Limits
	limit   int64
	running sync.WaitGroup

	mu     sync.Mutex // guards what follows, and all sources
	chunks map[key]*entry
	recent *list.List // of the entries whose bytes are here; last used first
	bytes  int64      // in recent
	taken  int64      // of the fetches under way, as far as they fit
	onWay  int64      // bytes of the chunks being fetched, or to be
	near   *Source    // what is on disk
	all    []*Source
}

// key has the size too: indexes may disagree about it, and what is proven for one size is not for another.
type key struct {
	digest    blob.Digest
	size      int64
	algorithm blob.Algorithm
}

// entry is a chunk that is here, or on its way.
type entry struct {
	key     key
	data    []byte        // nil until it is here
	ready   chan struct{} // closed when data or err is set
	err     error
	place   *list.Element // in recent, when data is here
	first   home          // who wanted it first; never changes
	homes   []home        // whose files want it, the first among them
	source  *Source       // whose store is asked in the end
	rank    rank
	at      *Source       // in whose queue it is, or who fetches it
	queued  *list.Element // there
	began   departure
	early   bool  // it began before anybody waited for it
	asked   bool  // somebody came for it since it was added
	unread  bool  // came from a feed and was not used
	feed    *feed // that wanted it; may be nil
	waiting int   // for it
	held    int   // how many wait that would wait for a store that is away
	away    error // why the store did not answer, while it is asked again
}

// home is a chunk's place in an image.
type home struct {
	image *Image
	chunk int
}

const maxHomes = 8

// NewCache makes a cache. Its fetches end with ctx, or with Close.
func NewCache(ctx context.Context, limits Limits) *Cache {
	if limits.Bytes <= 0 {
		limits.Bytes = 64 << 20
	}
	if limits.Fetches <= 0 {
		limits.Fetches = 64
	}
	if limits.Log == nil {
		limits.Log = slog.New(slog.DiscardHandler)
	}
	c := &Cache{limits: limits, limit: limits.Bytes}
	c.ctx, c.end = context.WithCancel(ctx)
	c.chunks, c.recent = map[key]*entry{}, list.New()
	c.near = c.newSource(nil, nearSlots)
	context.AfterFunc(c.ctx, c.abandon)
	return c
}

// Source is a store that the cache fetches from, for as many images as like. It must know chunks by the digest
// algorithm of their indexes, and is asked for so many chunks at once; 0 is the cache's default.
func (c *Cache) Source(from store.Getter, fetches int) *Source {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.newSource(from, cmp.Or(fetches, c.limits.Fetches))
}

// Close ends the fetches that are under way, and returns when none is left. No other begins afterwards.
func (c *Cache) Close() {
	c.end()
	c.abandon()
	c.running.Wait()
}

// abandon fails all that has not begun, when the context has ended.
func (c *Cache) abandon() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.all {
		s.clear()
	}
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

// wanted is a chunk of an image that is to be here.
type wanted struct {
	key key
	home
}

// start makes sure that a chunk is here or on its way, as somebody waits for it. The caller holds mu.
func (c *Cache) start(w wanted) *entry {
	e := c.use(w.key)
	if e == nil {
		return c.add(w, demand)
	}
	e.asked = true
	c.join(e, w.home)
	if e.queued != nil && e.rank != demand {
		e.at.promote(e)
	}
	return e
}

// join notes that an image without the chunk on its disk wants it too.
func (c *Cache) join(e *entry, h home) {
	if h.image.disk == nil || len(e.homes) >= maxHomes || e.data != nil {
		return
	}
	for _, known := range e.homes {
		if known == h {
			return
		}
	}
	e.homes = append(e.homes, h)
}

// prefetch is start for chunks that nobody waits for. It stops when half a cache is on its way: more would pile up, and
// push out what was not read yet.
func (c *Cache) prefetch(chunks []wanted, r rank) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.pump()
	for _, w := range chunks {
		if e := c.use(w.key); e != nil {
			c.join(e, w.home)
			continue
		}
		if c.onWay+w.key.size > c.limit/2 {
			return
		}
		c.add(w, r)
	}
}

// use is the entry of a chunk that is here or on its way, else nil. The caller holds mu.
func (c *Cache) use(k key) *entry {
	e := c.chunks[k]
	if e != nil && e.place != nil {
		c.recent.MoveToFront(e.place)
	}
	return e
}

// add queues a chunk that is not here. The caller holds mu, and pumps.
func (c *Cache) add(w wanted, r rank) *entry {
	e := &entry{key: w.key, ready: make(chan struct{}), source: w.image.source, rank: r, first: w.home, homes: []home{w.home}}
	c.chunks[w.key] = e
	c.onWay += w.key.size
	if c.ctx.Err() != nil {
		c.fail(e, c.ctx.Err())
		return e
	}
	if r != demand {
		w.image.expect(w.chunk, r)
	}
	if c.mayBeNear(w) {
		c.near.push(e)
		return e
	}
	if r == demand {
		w.image.missed(w.chunk)
	}
	e.source.push(e)
	return e
}

// mayBeNear says whether a chunk may be on disk, to be proven.
func (c *Cache) mayBeNear(w wanted) bool {
	if d := w.image.disk; d != nil && d.Claims(w.chunk) {
		return true
	}
	return c.limits.Disk != nil && c.limits.Disk.MayCopy(w.key.algorithm, w.key.digest, w.key.size)
}

// pump begins all fetches that may begin. The caller holds mu.
func (c *Cache) pump() {
	if c.ctx.Err() != nil {
		return
	}
	for _, s := range c.all {
		s.pump()
	}
}

// begin fetches an entry that a source took from its queue. The caller holds mu.
func (c *Cache) begin(e *entry) {
	c.taken += c.room(e)
	c.evict()
	c.running.Go(func() { c.fetch(e) })
}

// room is how much of the limit the fetch of an entry takes.
func (c *Cache) room(e *entry) int64 { return min(e.key.size, c.limit) }

// fits says whether a fetch may begin beside those under way. The caller holds mu.
func (c *Cache) fits(e *entry) bool { return c.taken == 0 || c.taken+c.room(e) <= c.limit }

// fetch gets an entry's bytes, from near or far, and hands them out.
func (c *Cache) fetch(e *entry) {
	data, at, waited := make([]byte, e.key.size), e.at, e.rank == demand
	origin, err := at.get(e, data)
	homes, r := c.deliver(e, data, origin, err)
	c.settle(homes, data, r)
	c.mu.Lock()
	defer c.mu.Unlock()
	at.landed(e.key.size, waited)
	c.pump()
}

// deliver hands out what a fetch brought, and returns whose files want it.
func (c *Cache) deliver(e *entry, data []byte, origin tier, err error) ([]home, rank) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.taken -= c.room(e)
	switch {
	case errors.Is(err, errElsewhere) && c.ctx.Err() == nil:
		if e.asked {
			e.rank = demand
		}
		e.source.push(e)
		return nil, e.rank
	case err != nil:
		e.at.failed(err)
		c.fail(e, err)
		return nil, e.rank
	}
	e.at.answered(e)
	e.first.image.came(origin, e)
	c.keep(e, data)
	c.pump()
	return e.homes, e.rank
}

// settle has the files of those who want a chunk take it in.
func (c *Cache) settle(homes []home, data []byte, r rank) {
	for _, h := range homes {
		switch {
		case h.image.disk == nil:
		case r == demand:
			h.image.disk.Offer(h.chunk, data)
		default:
			h.image.disk.OfferWait(c.ctx, h.chunk, data)
		}
	}
}

// keep takes an entry's bytes in. The caller holds mu.
func (c *Cache) keep(e *entry, data []byte) {
	c.onWay -= e.key.size
	c.bytes += e.key.size
	e.data = data
	e.leaveFeed(nil)
	e.place = c.recent.PushFront(e)
	close(e.ready)
	c.evict()
}

// leaveFeed tells the feed that wanted the entry what came of it. The caller holds mu.
func (e *entry) leaveFeed(err error) {
	if e.feed == nil {
		return
	}
	if e.unread && err != nil {
		e.unread = false
		e.first.image.unread -= e.key.size
	}
	e.feed.landed(e.first.chunk, err)
	e.feed = nil
}

// fail tells all who wait for an entry, and forgets it. The caller holds mu.
func (c *Cache) fail(e *entry, err error) {
	c.onWay -= e.key.size
	delete(c.chunks, e.key)
	e.err = err
	close(e.ready)
	for _, h := range e.homes {
		h.image.lost(h.chunk)
	}
	e.leaveFeed(err)
}

// evict drops what was not used for longest until the rest fits, beside what is being fetched. Who reads an
// entry keeps its bytes.
func (c *Cache) evict() {
	for c.bytes+c.taken > c.limit && c.recent.Len() > 1 {
		e := c.recent.Remove(c.recent.Back()).(*entry)
		delete(c.chunks, e.key)
		c.bytes -= e.key.size
		if e.unread {
			e.first.image.unread -= e.key.size
		}
	}
}
