// Package fetch reads chunks of images into memory: from the image's disk, from other images on disk, from seeds,
// from a delta, or from a store. Concurrent reads of a chunk share a single flight. Demand fetches, which block reads,
// overtake prefetches; prefetches are limited by the room on the link. Reads may block while a store is unavailable.
// The most recently used chunks stay in memory. The package does not choose the chunks to prefetch; its clients do.
package fetch

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"time"

	"cairn/blob"
	"cairn/store"
)

// Options of a Cache. The zero value of a field selects its default.
type Options struct {
	Bytes   int64        // limit of the memory in bytes, fetches in flight included; default 64 MiB. One chunk always fits
	Fetches int          // in-flight limit of a source without a limit of its own; default 64
	Donors  Donors       // source of chunks of other images; may be nil
	Seeds   Donors       // source of chunks of seeds, which is asked after Donors; may be nil
	Log     *slog.Logger // for outages of stores; nil logs nothing
}

// Donors copies chunks from files on this machine. It must be safe for concurrent use. *imagecache.Dir implements it.
type Donors interface {
	// MayCopy reports whether Copy may succeed. It does not block on the disk.
	MayCopy(a blob.Algorithm, digest blob.Digest, size int64) bool
	// Copy fills dst with a chunk and verifies it. It reports whether the chunk was found.
	Copy(a blob.Algorithm, digest blob.Digest, dst []byte) bool
}

// Cache keeps chunks in memory and fetches missing ones. It does not keep failures: the next read requests the chunk
// again. Safe for concurrent use.
type Cache struct {
	ctx     context.Context // for fetches, which may outlive the reads that requested them
	cancel  context.CancelFunc
	limit   int64  // of the memory, in bytes
	fetches int    // default in-flight limit of a source
	donors  Donors // may be nil
	seeds   Donors // may be nil
	log     *slog.Logger
	running sync.WaitGroup

	mu           sync.Mutex // guards the fields below, and the sources, the clients' feeds and the entries in them
	memory       memory
	flights      map[key]*Entry // entries that are queued, being fetched or being offered to disks
	pendingBytes int64          // bytes of the entries that are queued or being fetched
	diskSource   *Source        // fetches from the clients' disks, the donors and the seeds
	sources      []*Source      // diskSource is the first
	alarm        alarm          // rings when a delayed fetch may start
}

// New returns a Cache. When ctx ends or Close is called, its fetches are cancelled.
func New(ctx context.Context, o Options) *Cache {
	if o.Bytes <= 0 {
		o.Bytes = 64 << 20
	}
	if o.Fetches <= 0 {
		o.Fetches = 64
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Cache{limit: o.Bytes, fetches: o.Fetches, donors: o.Donors, seeds: o.Seeds, log: o.Log}
	c.memory, c.flights, c.alarm.ring = newMemory(o.Bytes), map[key]*Entry{}, c.handleAlarm
	c.ctx, c.cancel = context.WithCancel(ctx)
	c.diskSource = newSource(c, nil, SourceOptions{Fetches: diskSlots})
	c.sources = []*Source{c.diskSource}
	context.AfterFunc(c.ctx, c.failQueued)
	return c
}

// NewSource returns a Source that fetches chunks from a store. The store must use the digest algorithm of the indexes
// that are read through the Source.
func (c *Cache) NewSource(from store.Getter, o SourceOptions) *Source {
	o.Fetches = cmp.Or(o.Fetches, c.fetches)
	s := newSource(c, from, o)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sources = append(c.sources, s)
	return s
}

// Close cancels the fetches in flight, and blocks until all have ended. No fetch starts afterwards.
func (c *Cache) Close() {
	c.cancel()
	c.failQueued()
	c.running.Wait()
}

// failQueued fails all queued fetches. The context must have ended.
func (c *Cache) failQueued() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.alarm.disarm()
	for _, s := range c.sources {
		for e := s.nextEntry(); e != nil; e = s.nextEntry() {
			s.dequeue(e)
			c.failEntry(e, c.ctx.Err())
		}
	}
}

// Usage returns the bytes of chunks in memory, fetches in flight included, and their limit.
func (c *Cache) Usage() (bytes, limit int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.memory.usedBytes(), c.limit
}

// Lookup returns a chunk's bytes if they are in memory, or nil. The caller must not change them.
func (c *Client) Lookup(chunk blob.Chunk) []byte {
	k := c.keyOf(chunk)
	c.cache.mu.Lock()
	defer c.cache.mu.Unlock()
	if e := c.cache.memory.getEntry(k); e != nil {
		return e.data
	}
	return nil
}

// InSeed reports whether a seed may have a chunk, not verified yet.
func (c *Client) InSeed(chunk blob.Chunk) bool {
	d := c.cache.seeds
	return d != nil && d.MayCopy(c.index.Algorithm(), chunk.Digest, chunk.Size)
}

// InDelta reports whether a delta may make a chunk.
func (c *Client) InDelta(chunk blob.Chunk) bool {
	d := c.source.deltas
	return d != nil && d.MayMake(chunk.Digest, chunk.Size)
}

// InMemory reports whether a chunk is in memory. It does not count as a use for eviction.
func (c *Client) InMemory(chunk blob.Chunk) bool {
	c.cache.mu.Lock()
	defer c.cache.mu.Unlock()
	return c.cache.memory.hasChunk(c.keyOf(chunk))
}

// Request demands the chunks [lo, hi). It returns an entry for each chunk, to pass to Wait, or nil for chunks of
// zeros and chunks on disk. missing reports whether a chunk must be fetched from the store, and was not in flight.
func (c *Client) Request(lo, hi int) (entries []*Entry, missing bool) {
	entries = make([]*Entry, hi-lo)
	c.cache.mu.Lock()
	defer c.cache.mu.Unlock()
	for i := lo; i < hi; i++ {
		if c.needsFetch(i) {
			var remote bool
			entries[i-lo], remote = c.cache.demandChunk(c.wantOf(i))
			missing = missing || remote
		}
	}
	c.cache.startFetches()
	return entries, missing
}

// Refetch demands chunk i, even if the disk has it.
func (c *Client) Refetch(i int) *Entry {
	c.cache.mu.Lock()
	defer c.cache.mu.Unlock()
	e, _ := c.cache.demandChunk(c.wantOf(i))
	c.cache.startFetches()
	return e
}

// Prefetch queues the chunks [lo, hi) and returns at once. It stops when half of the memory is queued or in flight,
// since more would evict chunks before they are read.
func (c *Client) Prefetch(lo, hi int, p Priority) {
	c.prefetch(lo, hi, p, func(want) bool { return true })
}

// PrefetchNeighbours is Prefetch for neighbours of a missed chunk. They save round trips to the store, so those that may
// be on disk or in a seed are left out. If the missed chunk is in a pack, so are all that are not near it there.
func (c *Client) PrefetchNeighbours(lo, hi, missed int) {
	packs, digest := c.source.packs, c.index.At(missed).Digest
	packed := packs != nil && packs.IsPacked(digest)
	c.prefetch(lo, hi, Neighbour, func(w want) bool {
		return !c.cache.mayBeLocal(w) && (!packed || packs.Near(digest, w.digest))
	})
}

func (c *Client) prefetch(lo, hi int, p Priority, mayFetch func(want) bool) {
	c.cache.mu.Lock()
	defer c.cache.mu.Unlock()
	for i := lo; i < hi; i++ {
		if !c.needsFetch(i) {
			continue
		}
		w := c.wantOf(i)
		if e := c.cache.findEntry(w.key); e != nil {
			e.addReceiver(w.position)
			continue
		}
		if !mayFetch(w) {
			continue
		}
		if c.cache.pendingBytes+w.size > c.cache.limit/2 {
			break
		}
		c.cache.queueChunk(w, p)
	}
	c.cache.startFetches()
}

// StartFeed prefetches the chunks that f names, at most bytesPerSecond; 0 is no limit. It returns at once.
func (c *Client) StartFeed(f Feed, p Priority, bytesPerSecond int64) {
	c.cache.mu.Lock()
	defer c.cache.mu.Unlock()
	c.source.addFeed(&feed{Feed: f, client: c, priority: p, rate: bytesPerSecond})
	c.cache.startFetches()
}

// StopFeeds stops the feeds that StartFeed started. Fetches in flight continue. The chunks that stay in memory do not
// refer to the client any more.
func (c *Client) StopFeeds() {
	c.cache.mu.Lock()
	defer c.cache.mu.Unlock()
	c.source.removeFeeds(func(f *feed) bool { return f.client == c })
	for e := range c.cache.entries() {
		if e.client == c {
			e.markRead()
		}
	}
}

// MarkRead records the first read of a chunk that a feed prefetched. This makes room for another prefetch.
func (c *Client) MarkRead(chunk blob.Chunk) {
	c.cache.mu.Lock()
	defer c.cache.mu.Unlock()
	if e := c.cache.findEntry(c.keyOf(chunk)); e != nil && e.markRead() {
		c.cache.startFetches()
	}
}

// demandChunk returns the entry of a chunk that a read needs. remote reports whether the entry is new, and the store is
// asked for it.
func (c *Cache) demandChunk(w want) (e *Entry, remote bool) {
	e = c.findEntry(w.key)
	if e == nil {
		e = c.queueChunk(w, Demand)
		return e, e.at != c.diskSource
	}
	e.demanded = true
	e.addReceiver(w.position)
	if at := e.at; at.isQueued(e) && e.priority != Demand {
		at.promoteToDemand(e)
	}
	return e, false
}

// findEntry returns the entry of a chunk that is in memory or in flight, or nil.
func (c *Cache) findEntry(k key) *Entry {
	if e := c.memory.getEntry(k); e != nil {
		return e
	}
	return c.flights[k]
}

// entries yields the entries in memory and in flight.
func (c *Cache) entries() iter.Seq[*Entry] {
	return func(yield func(*Entry) bool) {
		for at := c.memory.recent.Front(); at != nil; at = at.Next() {
			if !yield(at.Value.(*Entry)) {
				return
			}
		}
		for _, e := range c.flights {
			if !yield(e) {
				return
			}
		}
	}
}

// queueChunk queues a chunk that is neither in memory nor in flight.
func (c *Cache) queueChunk(w want, p Priority) *Entry {
	e := newEntry(w, p)
	c.flights[w.key] = e
	c.pendingBytes += w.size
	if err := c.ctx.Err(); err != nil {
		c.failEntry(e, err)
		return e
	}
	if p != Demand {
		w.client.observer.Prefetching(w.chunk, p)
	}
	switch {
	case c.mayBeLocal(w):
		c.diskSource.enqueue(e)
		return e
	case p == Demand:
		w.client.observer.Missed(w.chunk)
	}
	e.source.enqueue(e)
	return e
}

// mayBeLocal reports whether a disk or a seed may have the chunk, not verified yet.
func (c *Cache) mayBeLocal(w want) bool {
	if w.isClaimed() {
		return true
	}
	for _, d := range []Donors{c.donors, c.seeds} {
		if d != nil && d.MayCopy(w.algorithm, w.digest, w.size) {
			return true
		}
	}
	return false
}

// startFetches starts all fetches that may start, the most urgent of each source first.
func (c *Cache) startFetches() {
	if c.ctx.Err() != nil {
		return
	}
	now := time.Now()
	for _, s := range c.sources {
		for e := s.nextEntry(); e != nil && c.mayStart(e, now); e = s.nextEntry() {
			c.startFetch(e)
		}
		for _, f := range slices.Clone(s.feeds) {
			c.startFeedFetches(s, f, now)
			f.run = 0
		}
	}
	for _, s := range c.sources {
		c.startRun(s)
	}
}

// handleAlarm calls startFetches when the alarm rings.
func (c *Cache) handleAlarm() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.alarm.disarm()
	c.startFetches()
}

// mayStart reports whether the fetch of a queued entry may start now. If not, it may set the alarm.
func (c *Cache) mayStart(e *Entry, now time.Time) bool {
	if !c.memory.fitsFetch(e.size) {
		return false
	}
	ok, later := e.at.mayFetch(e, now)
	c.alarm.ringAt(later)
	return ok
}

// startFetch removes an entry from its queue and fetches it. A packed one is fetched by startRun, with others.
func (c *Cache) startFetch(e *Entry) {
	at, demanded := e.at, e.priority == Demand
	at.beginFetch(e)
	c.memory.reserveFetch(e.size)
	if at.isPacked(e) {
		at.starting = append(at.starting, e)
		return
	}
	c.running.Go(func() { c.fetchEntry(e, at, make([]byte, e.size), demanded) })
}

// fetchEntry fetches the chunk of an entry into data, and ends the fetch.
func (c *Cache) fetchEntry(e *Entry, at *Source, data []byte, demanded bool) {
	origin, err := at.fetchChunk(c.ctx, e, data)
	c.endFetch(e, at, data, demanded, origin, err)
}

func (c *Cache) endFetch(e *Entry, at *Source, data []byte, demanded bool, origin origin, err error) {
	receivers := c.deliverResult(e, data, origin, err)
	for _, p := range receivers {
		p.offerChunk(c.ctx, data, demanded)
	}
	c.finishFetch(e, at, demanded)
}

// startRun fetches the packed chunks that startFetch has collected, in one call of the store. Those that it does not get
// are fetched again one by one, which may take retries and waiting.
func (c *Cache) startRun(s *Source) {
	run := s.starting
	if len(run) == 0 {
		return
	}
	s.starting = nil
	wants, demanded := make([]store.Want, len(run)), make([]bool, len(run))
	for i, e := range run {
		wants[i], demanded[i] = store.Want{Digest: e.key.digest, Dst: make([]byte, e.size)}, e.priority == Demand
	}
	c.running.Go(func() {
		slow := time.AfterFunc(slowFetch, func() {
			for _, e := range run {
				c.noteSlow(e)
			}
		})
		defer slow.Stop()
		s.from.Get(c.ctx, wants, func(i int, err error) {
			e, data := run[i], wants[i].Dst
			c.running.Go(func() { // an offer to a disk may block
				if err != nil {
					c.fetchEntry(e, s, data, demanded[i])
					return
				}
				c.endFetch(e, s, data, demanded[i], fromStore, nil)
			})
		})
	})
}

// finishFetch records the end of a fetch, and starts others. Until then findEntry finds the entry, even if memory
// does not keep it: a disk has the chunk only after the offer.
func (c *Cache) finishFetch(e *Entry, at *Source, demanded bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.isDone() && c.flights[e.key] == e {
		delete(c.flights, e.key)
	}
	at.endFetch(e.size, demanded, time.Now())
	c.startFetches()
}

// deliverResult hands the result of a fetch to the waiters. It returns the positions whose disks need the chunk.
func (c *Cache) deliverResult(e *Entry, data []byte, origin origin, err error) []position {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.memory.releaseFetch(e.size)
	switch {
	case errors.Is(err, errNotLocal) && c.ctx.Err() == nil:
		if e.demanded {
			e.priority = Demand
		}
		e.source.enqueue(e)
		return nil
	case err != nil:
		e.at.noteFailure(err, time.Now())
		c.failEntry(e, err)
		return nil
	}
	if origin != fromDelta && e.at.endOutage() { // a delta says nothing of the store
		c.log.Info("the store answers again")
	}
	c.pendingBytes -= e.size
	e.setData(data, origin)
	receivers := e.receivers
	e.dropClients()
	c.memory.addEntry(e)
	c.startFetches()
	return receivers
}

// failEntry fails an entry, and removes it from the flights.
func (c *Cache) failEntry(e *Entry, err error) {
	delete(c.flights, e.key)
	c.pendingBytes -= e.size
	e.setError(err)
}

// noteRetry records a failed fetch that will be retried, since reads wait for it. The store's next successful fetch
// closes over.
func (c *Cache) noteRetry(e *Entry, err error, waited time.Duration) (over <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.at.noteFailure(err, time.Now())
	c.logWait(e, err, waited)
	return e.at.over
}

// noteSlow records a slow fetch. If reads wait for it, the store counts as unavailable until a fetch succeeds.
func (c *Cache) noteSlow(e *Entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.isDone() || e.waiting.Load() == 0 {
		return
	}
	e.at.noteSlow()
	c.logWait(e, e.lastError(), slowFetch)
}

// logWait logs that reads wait for an entry, at most once per logInterval and outage. It does not affect fetches.
func (c *Cache) logWait(e *Entry, err error, waited time.Duration) {
	if !e.at.mayLog(time.Now()) {
		return
	}
	chunk := e.client.index.At(e.chunk)
	c.log.Warn("reads wait for the store", "image", e.client.name, "chunk", chunk.Digest.String(), "offset", chunk.Offset,
		"waited", waited.Round(time.Millisecond), "error", err)
}

// startFeedFetches starts fetches for a feed while there is room for them.
func (c *Cache) startFeedFetches(s *Source, f *feed, now time.Time) {
	for c.mayFeed(s, f, now) {
		w, found, more := c.nextFeedChunk(f)
		switch {
		case found:
			c.fetchForFeed(f, w, now)
			continue
		case more:
			f.pauseFor(now, 0)
		case f.pending > 0: // their results decide whether the feed ends
			return
		case f.Rewind():
			f.pauseFor(now, rewindPause)
		default:
			s.removeFeeds(func(other *feed) bool { return other == f })
			return
		}
		c.alarm.ringAt(f.next)
		return
	}
}

// mayFeed reports whether a feed may name a chunk now. If not, it may set the alarm.
func (c *Cache) mayFeed(s *Source, f *feed, now time.Time) bool {
	size, half := f.client.maxSize, c.limit/2
	if s.packs != nil && f.run <= 0 {
		size = max(size, min(s.runSize(f.Budget().Delay), half/4))
	}
	if now.Before(f.next) {
		c.alarm.ringAt(f.next)
		return false
	}
	if !f.client.hasUnreadRoom(size, half) || c.pendingBytes+size > max(half, size) || !c.memory.fitsFetch(size) ||
		c.diskSource.queues[f.priority].Len() >= diskSlots {
		return false
	}
	ok, later := s.mayFeed(f, size, now)
	if ok && f.run <= 0 {
		f.run = size
	}
	c.alarm.ringAt(later)
	return ok
}

// nextFeedChunk returns the next chunk of a feed that is neither on disk, in memory nor in flight. found is false if
// the next feedScan chunks have none. more reports whether the feed has not ended.
func (c *Cache) nextFeedChunk(f *feed) (w want, found, more bool) {
	for range feedScan {
		w, wanted, more := f.nextChunk()
		if !more {
			return want{}, false, false
		}
		if !wanted {
			continue
		}
		e := c.findEntry(w.key)
		if e == nil {
			return w, true, true
		}
		e.addReceiver(w.position)
		if data := e.data; data != nil {
			w.offerChunk(c.ctx, data, true) // the chunk is in memory, but not on disk
		}
	}
	return want{}, false, true
}

// fetchForFeed queues a chunk of a feed, and fetches it if it may start.
func (c *Cache) fetchForFeed(f *feed, w want, now time.Time) {
	f.chargeRate(w.size, now)
	f.run -= w.size
	e := c.queueChunk(w, f.priority)
	if !e.isDone() {
		e.setFeed(f)
	}
	if at := e.at; at.isQueued(e) && c.mayStart(e, now) {
		c.startFetch(e)
	}
}
