package fetch

import (
	"context"
	"slices"
	"sync/atomic"

	"cairn/blob"
)

// key tells chunks apart. Indexes may disagree about the size of a digest's chunk, and a chunk that is proven with one
// size is not proven with another.
type key struct {
	digest    blob.Digest
	size      int64
	algorithm blob.Algorithm
}

// home is a chunk's place in a client's image.
type home struct {
	client *Client
	chunk  int
}

// claimed reports whether the client's disk may have the chunk, still to be proven.
func (h home) claimed() bool {
	d := h.client.disk
	return d != nil && d.Claims(h.chunk)
}

// prove fills dst with the chunk from the client's disk. It reports whether that is the chunk.
func (h home) prove(dst []byte) bool { return h.claimed() && h.client.disk.Prove(h.chunk, dst) }

// offer has the client's disk keep the chunk. Data of an urgent chunk are not kept when the disk is behind; other data
// wait for it.
func (h home) offer(ctx context.Context, data []byte, urgent bool) {
	switch d := h.client.disk; {
	case d == nil:
	case urgent:
		d.Offer(h.chunk, data)
	default:
		d.OfferWait(ctx, h.chunk, data)
	}
}

// want is a wanted chunk, and where it is wanted.
type want struct {
	key
	home
}

// maxTakers is how many disks a chunk is offered to at most.
const maxTakers = 8

// Entry is a chunk in memory, or on its way there.
type Entry struct {
	key    key
	size   int64
	client *Client // that wanted it first
	chunk  int     // its place in that client's image
	source *Source // of that client; its store is asked last

	ready chan struct{} // closed when data or err is set
	data  []byte
	err   error

	at       *Source // in its queue the entry is, or it fetches the entry
	priority Priority
	takers   []home // whose disks want the chunk, the first client among them
	asked    bool   // a read has asked for it since it was added
	early    bool   // the fetch began before a read waited for it
	feed     *feed  // that named it, while it is on its way; may be nil
	unread   bool   // it counts as unread memory of the first client

	waiting, holding atomic.Int32 // reads that wait, and those of them that wait for an unavailable store
	failed           atomic.Pointer[error]
}

func newEntry(w want, p Priority) *Entry {
	return &Entry{
		key: w.key, size: w.size, client: w.client, chunk: w.chunk, source: w.client.source,
		ready: make(chan struct{}), priority: p, takers: []home{w.home},
	}
}

// join notes one more place that wants the chunk, unless it has come already.
func (e *Entry) join(h home) {
	if h.client.disk == nil || len(e.takers) >= maxTakers || e.data != nil || slices.Contains(e.takers, h) {
		return
	}
	e.takers = append(e.takers, h)
}

// joinFeed notes the feed that named the chunk. What it brings is unread; with a disk that does not count.
func (e *Entry) joinFeed(f *feed) {
	e.feed = f
	f.onWay++
	if e.client.disk == nil {
		e.unread = true
		e.client.unread += e.size
	}
}

// markRead notes that the chunk was read, or is gone. It reports whether the chunk counted as unread until then.
func (e *Entry) markRead() bool {
	if !e.unread {
		return false
	}
	e.unread = false
	e.client.unread -= e.size
	return true
}

// succeed hands the chunk to all waiters.
func (e *Entry) succeed(data []byte, origin origin) {
	e.client.counts[origin].Add(1)
	if origin == fromStore {
		e.client.fetched.Add(e.size)
	}
	e.data = data
	e.leaveFeed(nil)
	close(e.ready)
}

// fail hands a failure to all waiters.
func (e *Entry) fail(err error) {
	e.err = err
	e.markRead()
	for _, h := range e.takers {
		h.client.observer.Lost(h.chunk)
	}
	e.leaveFeed(err)
	close(e.ready)
}

func (e *Entry) leaveFeed(err error) {
	if e.feed != nil {
		e.feed.noteOutcome(e.chunk, err)
		e.feed = nil
	}
}

// done reports whether the entry has its chunk, or has failed.
func (e *Entry) done() bool { return e.data != nil || e.err != nil }

// addWaiter counts reads that wait; those that hold wait for an unavailable store too.
func (e *Entry) addWaiter(n int32, holds bool) {
	e.waiting.Add(n)
	if holds {
		e.holding.Add(n)
	}
}

// noteFailure notes why the store did not give the chunk, while it is asked again.
func (e *Entry) noteFailure(err error) { e.failed.Store(&err) }

// failure returns why the store did not give the chunk, or nil.
func (e *Entry) failure() error {
	if err := e.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// describe returns attributes for the log.
func (e *Entry) describe() []any {
	chunk := e.client.index.At(e.chunk)
	return []any{"image", e.client.name, "chunk", chunk.Digest.String(), "offset", chunk.Offset}
}
