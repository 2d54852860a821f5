package fetch

import (
	"context"
	"sync/atomic"
	"time"

	"cairn/blob"
)

// Disk is a disk cache of one client's image. Its methods, except Prove and OfferWait, must return at once. It must
// be safe for concurrent use. *imagecache.File implements it.
type Disk interface {
	// Has reports whether the disk has chunk i, verified.
	Has(i int) bool
	// Claims reports whether the disk may have chunk i, not verified yet.
	Claims(i int) bool
	// Prove reads a claimed chunk into dst and verifies it. It reports whether the chunk is valid; if so, the disk
	// has it from then on.
	Prove(i int, dst []byte) bool
	// Offer queues a verified chunk to be written, or drops it if the queue is full. The data must not change any
	// more.
	Offer(i int, data []byte)
	// OfferWait is like Offer, but blocks until there is room in the queue. It reports whether the chunk was queued.
	OfferWait(ctx context.Context, i int, data []byte) bool
}

// Observer is notified of events of a client's chunks. The Cache calls it with its lock held: the methods must return
// at once and must not call the Cache.
type Observer interface {
	// Missed is called when a read requests a chunk that is neither in memory, on disk, in a seed nor in flight.
	Missed(chunk int)
	// Prefetching is called when a chunk is queued for a prefetch.
	Prefetching(chunk int, p Priority)
	// Lost is called when a fetch of a chunk has failed.
	Lost(chunk int)
}

// ForEver is a Hold without a limit.
const ForEver = time.Duration(1<<63 - 1)

// ClientOptions of a Client. Observer is required.
type ClientOptions struct {
	Name     string        // name of the image, for the log
	Disk     Disk          // disk cache of the image; may be nil
	Hold     time.Duration // time limit of a read's retries while the store is unavailable; 0 fails at once
	Observer Observer
}

// Client reads the chunks of one image from a Source. Safe for concurrent use.
type Client struct {
	name     string
	index    *blob.Index
	maxSize  int64
	disk     Disk
	source   *Source
	cache    *Cache
	hold     time.Duration
	observer Observer
	stalls   stalls
	unread   int64                 // bytes in memory of a feed that no read used yet; guarded by the Cache's lock
	counts   [origins]atomic.Int64 // chunks by their origin
	fetched  atomic.Int64          // bytes from the store
	seeded   atomic.Int64          // bytes from seeds
	made     atomic.Int64          // bytes from deltas
}

// NewClient returns a client for x's image.
func NewClient(source *Source, x *blob.Index, o ClientOptions) *Client {
	return &Client{
		name: o.Name, index: x, maxSize: x.Params().Max, disk: o.Disk,
		source: source, cache: source.cache, hold: o.Hold, observer: o.Observer,
	}
}

func (c *Client) keyOf(chunk blob.Chunk) key {
	return key{chunk.Digest, chunk.Size, c.index.Algorithm()}
}

func (c *Client) wantOf(i int) want { return want{c.keyOf(c.index.At(i)), position{c, i}} }

// needsFetch reports whether chunk i is neither zeros nor on the disk.
func (c *Client) needsFetch(i int) bool {
	return !c.index.IsZero(i) && (c.disk == nil || !c.disk.Has(i))
}

// Demands returns the number of demand fetches in flight at the client's source.
func (c *Client) Demands() int { return int(c.source.demands.Load()) }

// Memory returns the Cache's limit in bytes, which all clients share.
func (c *Client) Memory() int64 { return c.cache.limit }

// Product returns the bandwidth-delay product of the link to the store, in bytes.
func (c *Client) Product() int64 { return c.source.link.Product() }

// hasUnreadRoom reports whether feeds may prefetch n bytes more while at most limit bytes in memory are unread. A client
// with a disk has no limit.
func (c *Client) hasUnreadRoom(n, limit int64) bool { return c.disk != nil || c.unread+n <= limit }

// Stats holds the counters of a client since NewClient, and the reads that block now.
type Stats struct {
	ProvenChunks int64 // chunks of the client's disk that were verified after an unclean stop
	CopiedChunks int64 // chunks copied from the disk of another image, or from another offset of this one
	SeedChunks   int64 // chunks read from seeds
	BytesSeeded  int64 // bytes of these chunks
	DeltaChunks  int64 // chunks made from deltas
	BytesMade    int64 // bytes of these chunks
	Fetched      int64 // chunks fetched from the store
	BytesFetched int64 // bytes of the fetched chunks, decompressed

	Stalls    int64         // waits for a chunk
	StallTime time.Duration // sum of the waits that have ended
	Waiting   []Stall       // waits that have not ended, the longest first
}

// Stats returns the client's counters.
func (c *Client) Stats() Stats {
	s := Stats{
		ProvenChunks: c.counts[fromDisk].Load(), CopiedChunks: c.counts[fromDonor].Load(),
		SeedChunks: c.counts[fromSeed].Load(), BytesSeeded: c.seeded.Load(),
		DeltaChunks: c.counts[fromDelta].Load(), BytesMade: c.made.Load(),
		Fetched: c.counts[fromStore].Load(), BytesFetched: c.fetched.Load(),
	}
	c.stalls.fillStats(&s)
	return s
}
