// Package fetch brings chunks of images into memory: from the image's disk, from other images on disk, or from a store.
// However many reads ask for a chunk, it is fetched once. Demand fetches, which reads wait for, go before prefetches; a
// prefetch is sent only as far as the link has room for it. Reads may wait for a store that is unavailable. The chunks
// that were used last stay in memory. The package does not know which chunks are worth a prefetch: its clients say so.
package fetch

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"cairn/blob"
	"cairn/store"
)

// Options of a Cache. The zero value of a field is its default.
type Options struct {
	Bytes   int64        // of chunks in memory, those being fetched included; default 64 MiB. One chunk is always kept
	Fetches int          // in-flight limit of a source that has none of its own; default 64
	Donors  Donors       // where chunks of other images may be found; may be nil
	Log     *slog.Logger // for stores that do not answer; nil logs nothing
}

// Donors are images on disk whose chunks may be copied. *imagecache.Dir implements it.
type Donors interface {
	// MayCopy reports whether Copy is worth the attempt. It does not wait for the disk.
	MayCopy(a blob.Algorithm, digest blob.Digest, size int64) bool
	// Copy fills dst with a chunk and proves it. It reports whether the chunk was there.
	Copy(a blob.Algorithm, digest blob.Digest, dst []byte) bool
}

// Cache keeps chunks in memory, and fetches those that are missing. A failure is not kept: the next read asks the store
// again. Safe for concurrent use.
type Cache struct {
	ctx     context.Context // of the fetches, which outlive the reads that asked for them
	end     context.CancelFunc
	limit   int64 // bytes of memory
	fetches int
	donors  Donors // may be nil
	log     *slog.Logger
	running sync.WaitGroup

	mu      sync.Mutex // guards what follows, and the sources, the clients' feeds and the entries in them
	memory  memory
	flights map[key]*Entry // queued, being fetched, or being offered to disks
	onWay   int64          // bytes of those that are queued or being fetched
	disk    *Source        // the clients' disks, and the donors
	sources []*Source      // disk is the first
	alarm   alarm          // rings when something may begin that waits for a time
}

// New returns a Cache. Its fetches end with ctx, or with Close.
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
	c := &Cache{limit: o.Bytes, fetches: o.Fetches, donors: o.Donors, log: o.Log}
	c.memory, c.flights, c.alarm.ring = newMemory(o.Bytes), map[key]*Entry{}, c.pumpAgain
	c.ctx, c.end = context.WithCancel(ctx)
	c.disk = newSource(c, nil, SourceOptions{Fetches: diskSlots})
	c.sources = []*Source{c.disk}
	context.AfterFunc(c.ctx, c.abandon)
	return c
}

// NewSource returns a Source that gets chunks from a store. The store must know chunks by the digest algorithm of the
// indexes that are read through the Source.
func (c *Cache) NewSource(from store.Getter, o SourceOptions) *Source {
	o.Fetches = cmp.Or(o.Fetches, c.fetches)
	s := newSource(c, from, o)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sources = append(c.sources, s)
	return s
}

// Close ends the fetches under way, and returns when none is left. No other begins afterwards.
func (c *Cache) Close() {
	c.end()
	c.abandon()
	c.running.Wait()
}

// abandon fails all fetches that have not begun, when the context has ended.
func (c *Cache) abandon() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.alarm.clear()
	for _, s := range c.sources {
		for e := s.front(); e != nil; e = s.front() {
			s.remove(e)
			c.fail(e, c.ctx.Err())
		}
	}
}

// Usage returns how many bytes of chunks are in memory, those being fetched included, and how many may be.
func (c *Cache) Usage() (bytes, limit int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.memory.used(), c.limit
}

// Lookup returns a chunk's bytes if they are in memory, else nil. They must not be changed.
func (c *Client) Lookup(chunk blob.Chunk) []byte {
	k := c.keyOf(chunk)
	c.cache.mu.Lock()
	defer c.cache.mu.Unlock()
	if e := c.cache.memory.get(k); e != nil {
		return e.data
	}
	return nil
}

// InMemory reports whether a chunk is in memory. It does not count as a use.
func (c *Client) InMemory(chunk blob.Chunk) bool {
	c.cache.mu.Lock()
	defer c.cache.mu.Unlock()
	return c.cache.memory.has(c.keyOf(chunk))
}

// Request demands the chunks from lo up to but not including hi. It returns the entries to wait for: nil for chunks that
// are on disk, or zeros. missing reports whether a chunk was neither in memory, on disk nor on its way.
func (c *Client) Request(lo, hi int) (entries []*Entry, missing bool) {
	entries = make([]*Entry, hi-lo)
	c.cache.mu.Lock()
	defer c.cache.mu.Unlock()
	for i := lo; i < hi; i++ {
		if c.lacks(i) {
			var began bool
			entries[i-lo], began = c.cache.demand(c.want(i))
			missing = missing || began
		}
	}
	c.cache.pump()
	return entries, missing
}

// Refetch demands a chunk, whatever the disk says.
func (c *Client) Refetch(i int) *Entry {
	c.cache.mu.Lock()
	defer c.cache.mu.Unlock()
	e, _ := c.cache.demand(c.want(i))
	c.cache.pump()
	return e
}

// Prefetch fetches the chunks from lo up to but not including hi. It does not wait, and stops when half of the memory is
// on its way: more would push out what was not read yet.
func (c *Client) Prefetch(lo, hi int, p Priority) {
	c.cache.mu.Lock()
	defer c.cache.mu.Unlock()
	for i := lo; i < hi; i++ {
		if !c.lacks(i) {
			continue
		}
		w := c.want(i)
		if e := c.cache.find(w.key); e != nil {
			e.join(w.home)
			continue
		}
		if c.cache.onWay+w.size > c.cache.limit/2 {
			break
		}
		c.cache.add(w, p)
	}
	c.cache.pump()
}

// StartFeed prefetches the chunks that f names, with at most so many bytes a second; 0 is no limit. It does not wait.
func (c *Client) StartFeed(f Feed, p Priority, bytesPerSecond int64) {
	c.cache.mu.Lock()
	defer c.cache.mu.Unlock()
	c.source.addFeed(&feed{Feed: f, client: c, priority: p, rate: bytesPerSecond})
	c.cache.pump()
}

// StopFeeds ends what StartFeed began.
func (c *Client) StopFeeds() {
	c.cache.mu.Lock()
	defer c.cache.mu.Unlock()
	c.source.removeFeeds(func(f *feed) bool { return f.client == c })
}

// MarkRead notes the first read of a chunk that a feed brought: there is room for another.
func (c *Client) MarkRead(chunk blob.Chunk) {
	c.cache.mu.Lock()
	defer c.cache.mu.Unlock()
	if e := c.cache.find(c.keyOf(chunk)); e != nil && e.markRead() {
		c.cache.pump()
	}
}

// demand returns the entry of a chunk that a read waits for. began reports whether it is a new one.
func (c *Cache) demand(w want) (e *Entry, began bool) {
	e = c.find(w.key)
	if e == nil {
		return c.add(w, Demand), true
	}
	e.asked = true
	e.join(w.home)
	if at := e.at; at.queued(e) && e.priority != Demand {
		at.promote(e)
	}
	return e, false
}

// find returns the entry of a chunk in memory or on its way, else nil.
func (c *Cache) find(k key) *Entry {
	if e := c.memory.get(k); e != nil {
		return e
	}
	return c.flights[k]
}

// add queues a chunk that is neither in memory nor on its way.
func (c *Cache) add(w want, p Priority) *Entry {
	e := newEntry(w, p)
	c.flights[w.key] = e
	c.onWay += w.size
	if err := c.ctx.Err(); err != nil {
		c.fail(e, err)
		return e
	}
	if p != Demand {
		w.client.observer.Prefetching(w.chunk, p)
	}
	switch {
	case c.mayBeOnDisk(w):
		c.disk.push(e)
		return e
	case p == Demand:
		w.client.observer.Missed(w.chunk)
	}
	e.source.push(e)
	return e
}

// mayBeOnDisk reports whether a chunk may be on some disk, still to be proven.
func (c *Cache) mayBeOnDisk(w want) bool {
	if w.claimed() {
		return true
	}
	return c.donors != nil && c.donors.MayCopy(w.algorithm, w.digest, w.size)
}

// pump begins all fetches that may begin, the most urgent first.
func (c *Cache) pump() {
	if c.ctx.Err() != nil {
		return
	}
	now := time.Now()
	for _, s := range c.sources {
		for e := s.front(); e != nil && c.mayLaunch(e, now); e = s.front() {
			c.launch(e)
		}
		for _, f := range slices.Clone(s.feeds) {
			c.pumpFeed(s, f, now)
		}
	}
}

// pumpAgain calls pump when the alarm rings.
func (c *Cache) pumpAgain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.alarm.clear()
	c.pump()
}

// mayLaunch reports whether a queued entry may be fetched now.
func (c *Cache) mayLaunch(e *Entry, now time.Time) bool {
	if !c.memory.fits(e.size) {
		return false
	}
	ok, later := e.at.mayFetch(e, now)
	c.alarm.set(later)
	return ok
}

// launch takes an entry out of its queue and fetches it.
func (c *Cache) launch(e *Entry) {
	at, demanded := e.at, e.priority == Demand
	at.depart(e)
	c.memory.reserve(e.size)
	c.running.Go(func() {
		data := make([]byte, e.size)
		origin, err := at.get(c.ctx, e, data)
		takers := c.deliver(e, data, origin, err)
		for _, h := range takers {
			h.offer(c.ctx, data, demanded)
		}
		c.land(e, at, demanded)
	})
}

// land notes that a fetch has ended, and begins others in its place. Until then the entry can be found, whether or not
// memory keeps it: a disk finds the chunk only after it was offered.
func (c *Cache) land(e *Entry, at *Source, demanded bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.done() && c.flights[e.key] == e {
		delete(c.flights, e.key)
	}
	at.arrive(e.size, demanded, time.Now())
	c.pump()
}

// deliver hands out the result of a fetch. It returns the places whose disks want the chunk.
func (c *Cache) deliver(e *Entry, data []byte, origin origin, err error) []home {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.memory.release(e.size)
	switch {
	case errors.Is(err, errNotOnDisk) && c.ctx.Err() == nil:
		if e.asked {
			e.priority = Demand
		}
		e.source.push(e)
		return nil
	case err != nil:
		e.at.noteFailure(err, time.Now())
		c.fail(e, err)
		return nil
	}
	if e.at.endOutage() {
		c.log.Info("the store answers again")
	}
	c.onWay -= e.size
	e.succeed(data, origin)
	c.memory.keep(e)
	c.pump()
	return e.takers
}

// fail tells all waiters of an entry, and forgets it.
func (c *Cache) fail(e *Entry, err error) {
	delete(c.flights, e.key)
	c.onWay -= e.size
	e.fail(err)
}

// hold notes that a fetch failed and will be repeated, as reads wait for it. The channel is closed when the store answers.
func (c *Cache) hold(e *Entry, err error, waited time.Duration) (answers <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.at.noteFailure(err, time.Now())
	c.logWait(e, err, waited)
	return e.at.answers()
}

// noteSlow notes that a fetch takes long. If reads wait for it, the store counts as unavailable until it answers.
func (c *Cache) noteSlow(e *Entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.done() || e.waiting.Load() == 0 {
		return
	}
	e.at.noteSlow()
	c.logWait(e, e.failure(), slowFetch)
}

// logWait logs that reads wait for an entry: of many at once the first, and one now and then. It changes nothing that
// decides about fetches.
func (c *Cache) logWait(e *Entry, err error, waited time.Duration) {
	if !e.at.mayLog(time.Now()) {
		return
	}
	c.log.Warn("reads wait for the store", append(e.describe(), "waited", waited.Round(time.Millisecond), "error", err)...)
}

// pumpFeed begins fetches for a feed for as long as there is room for them.
func (c *Cache) pumpFeed(s *Source, f *feed, now time.Time) {
	for c.mayFeed(s, f, now) {
		w, found, more := c.nextOf(f)
		switch {
		case found:
			c.feed(f, w, now)
			continue
		case more:
			f.pause(now, 0)
		case f.onWay > 0: // their outcome is not known yet
			return
		case f.Rewind():
			f.pause(now, passPause)
		default:
			s.removeFeeds(func(other *feed) bool { return other == f })
			return
		}
		c.alarm.set(f.next)
		return
	}
}

// mayFeed reports whether a feed may name a chunk now.
func (c *Cache) mayFeed(s *Source, f *feed, now time.Time) bool {
	size, half := f.client.maxSize, c.limit/2
	if now.Before(f.next) {
		c.alarm.set(f.next)
		return false
	}
	if !f.client.mayFeed(half) || c.onWay+size > max(half, size) || !c.memory.fits(size) || c.disk.length(f.priority) >= diskSlots {
		return false
	}
	ok, later := s.mayFeed(f, now)
	c.alarm.set(later)
	return ok
}

// nextOf returns the next chunk of a feed that is neither on disk, in memory nor on its way, if one is found soon. more
// reports whether the feed has not ended.
func (c *Cache) nextOf(f *feed) (w want, found, more bool) {
	for range feedSteps {
		w, wanted, more := f.step()
		if !more {
			return want{}, false, false
		}
		if !wanted {
			continue
		}
		e := c.find(w.key)
		if e == nil {
			return w, true, true
		}
		e.join(w.home)
		if data := e.data; data != nil {
			w.offer(c.ctx, data, true) // it is in memory only
		}
	}
	return want{}, false, true
}

// feed fetches a chunk for a feed.
func (c *Cache) feed(f *feed, w want, now time.Time) {
	f.pay(w.size, now)
	e := c.add(w, f.priority)
	if !e.done() {
		e.joinFeed(f)
	}
	if at := e.at; at.queued(e) && c.mayLaunch(e, now) {
		c.launch(e)
	}
}
