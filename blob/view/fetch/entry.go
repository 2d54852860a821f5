package fetch

import (
	"context"
	"slices"
	"sync/atomic"

	"cairn/blob"
)

// key identifies a chunk. Indexes may disagree about the size of a digest's chunk, and a chunk that is verified with
// one size is not verified with another.
type key struct {
	digest    blob.Digest
	size      int64
	algorithm blob.Algorithm
}

// position is a chunk's position in a client's image.
type position struct {
	client *Client
	chunk  int
}

// isClaimed reports whether the client's disk may have the chunk, not verified yet.
func (p position) isClaimed() bool {
	d := p.client.disk
	return d != nil && d.Claims(p.chunk)
}

// offerChunk offers the chunk to the client's disk. If the disk's queue is full, an urgent chunk is dropped, and
// another one waits.
func (p position) offerChunk(ctx context.Context, data []byte, urgent bool) {
	switch d := p.client.disk; {
	case d == nil:
	case urgent:
		d.Offer(p.chunk, data)
	default:
		d.OfferWait(ctx, p.chunk, data)
	}
}

// want is a chunk to fetch, and the position that needs it.
type want struct {
	key
	position
}

// maxReceivers limits the disks that a fetched chunk is offered to.
const maxReceivers = 8

// Entry is a chunk that is in memory or in flight.
type Entry struct {
	key    key
	size   int64
	client *Client // the first client that needed the chunk; see dropClients
	chunk  int     // the chunk's number in that client's image
	source *Source // that client's source, which is asked after the disks

	ready chan struct{} // closed when data or err is set
	data  []byte
	err   error

	at        *Source // the source that queues or fetches the entry
	priority  Priority
	receivers []position // positions whose disks need the chunk, the first client's among them
	demanded  bool       // a read has requested the entry while it was in flight
	early     bool       // the fetch started before a read waited for it
	feed      *feed      // the feed that named the chunk, while it is in flight; may be nil
	unread    bool       // the chunk counts as unread by the first client

	waiting, retrying atomic.Int32          // reads that wait, and those of them that wait while the store is unavailable
	lastErr           atomic.Pointer[error] // the last error of the store, while the fetch is retried
}

func newEntry(w want, p Priority) *Entry {
	return &Entry{
		key: w.key, size: w.size, client: w.client, chunk: w.chunk, source: w.client.source,
		ready: make(chan struct{}), priority: p, receivers: []position{w.position},
	}
}

// addReceiver adds a position whose disk needs the chunk, unless the chunk was fetched already.
func (e *Entry) addReceiver(p position) {
	if p.client.disk == nil || len(e.receivers) >= maxReceivers || e.data != nil || slices.Contains(e.receivers, p) {
		return
	}
	e.receivers = append(e.receivers, p)
}

// setFeed sets the feed that named the chunk. The chunk then counts as unread, unless its client has a disk.
func (e *Entry) setFeed(f *feed) {
	e.feed = f
	f.pending++
	if e.client.disk == nil {
		e.unread = true
		e.client.unread += e.size
	}
}

// markRead records that the chunk was read or dropped. It reports whether the chunk counted as unread.
func (e *Entry) markRead() bool {
	if !e.unread {
		return false
	}
	e.unread = false
	e.client.unread -= e.size
	e.dropClients()
	return true
}

// dropClients removes the references to clients from an entry in memory, unless the chunk counts as unread by the first
// one. The entry may stay longer than the client, whose index and disk would stay with it.
func (e *Entry) dropClients() {
	if e.data != nil {
		e.receivers = nil
		if !e.unread {
			e.client = nil
		}
	}
}

// setData completes the entry with the chunk's bytes, and wakes the waiters.
func (e *Entry) setData(data []byte, origin origin) {
	e.client.counts[origin].Add(1)
	switch origin {
	case fromStore:
		e.client.fetched.Add(e.size)
	case fromSeed:
		e.client.seeded.Add(e.size)
	case fromDelta:
		e.client.made.Add(e.size)
	case fromDisk, fromDonor, origins:
	}
	e.data = data
	e.clearFeed(nil)
	close(e.ready)
}

// setError fails the entry, and wakes the waiters.
func (e *Entry) setError(err error) {
	e.err = err
	e.markRead()
	for _, p := range e.receivers {
		p.client.observer.Lost(p.chunk)
	}
	e.clearFeed(err)
	close(e.ready)
}

func (e *Entry) clearFeed(err error) {
	if e.feed != nil {
		e.feed.noteOutcome(e.chunk, err)
		e.feed = nil
	}
}

// isDone reports whether the entry has its chunk or has failed.
func (e *Entry) isDone() bool { return e.data != nil || e.err != nil }

// addWaiters adds n to the number of waiting reads, and, with retries, of those that wait while the store is
// unavailable.
func (e *Entry) addWaiters(n int32, retries bool) {
	e.waiting.Add(n)
	if retries {
		e.retrying.Add(n)
	}
}

// lastError returns the store's last error, or nil.
func (e *Entry) lastError() error {
	if err := e.lastErr.Load(); err != nil {
		return *err
	}
	return nil
}
