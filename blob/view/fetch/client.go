package fetch

import (
	"context"
	"sync/atomic"
	"time"

	"cairn/blob"
)

// Disk is where a client's image is kept. Its methods but Prove and OfferWait must return at once. Safe for concurrent
// use. *imagecache.File implements it.
type Disk interface {
	// Has reports whether chunk i is there and proven.
	Has(i int) bool
	// Claims reports whether chunk i may be there, still to be proven.
	Claims(i int) bool
	// Prove reads a claimed chunk into dst. It reports whether the chunk is right; from then on the disk has it.
	Prove(i int, dst []byte) bool
	// Offer has a proven chunk written later, unless the disk is behind. The data must not change any more.
	Offer(i int, data []byte)
	// OfferWait is Offer that waits until the disk is not behind. It reports whether the chunk will be written.
	OfferWait(ctx context.Context, i int, data []byte) bool
}

// Observer hears what becomes of a client's chunks. The Cache calls it with its lock held: the methods must return at
// once and must not call the Cache.
type Observer interface {
	// Missed is called when a read asks for a chunk that is neither in memory, on disk nor on its way.
	Missed(chunk int)
	// Prefetching is called when a chunk is queued before a read asked for it.
	Prefetching(chunk int, p Priority)
	// Lost is called when a chunk could not be fetched.
	Lost(chunk int)
}

// ForEver is a Hold that does not end.
const ForEver = time.Duration(1<<63 - 1)

// ClientOptions of a Client. Only Observer must be set.
type ClientOptions struct {
	Name     string        // for the log
	Disk     Disk          // where the image is kept; may be nil
	Hold     time.Duration // how long a read waits for a store that is unavailable, which is asked again; 0 is not at all
	Observer Observer
}

// Client is an image whose chunks come from a Source. Safe for concurrent use.
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
	unread   int64                 // bytes in memory that a feed brought and that were not read; the Cache's lock guards it
	counts   [origins]atomic.Int64 // chunks
	fetched  atomic.Int64          // bytes from the store
}

// NewClient returns a client that reads x's image from a Source.
func NewClient(source *Source, x *blob.Index, o ClientOptions) *Client {
	return &Client{
		name: o.Name, index: x, maxSize: x.Params().Max, disk: o.Disk,
		source: source, cache: source.cache, hold: o.Hold, observer: o.Observer,
	}
}

func (c *Client) keyOf(chunk blob.Chunk) key {
	return key{chunk.Digest, chunk.Size, c.index.Algorithm()}
}

func (c *Client) want(i int) want { return want{c.keyOf(c.index.At(i)), home{c, i}} }

// lacks reports whether a chunk needs fetching: it is not zero and not on the disk.
func (c *Client) lacks(i int) bool { return !c.index.IsZero(i) && (c.disk == nil || !c.disk.Has(i)) }

// Demands returns how many chunks are being fetched from the store that reads wait for.
func (c *Client) Demands() int { return int(c.source.demands.Load()) }

// Memory returns how many bytes of chunks may be in memory, of all clients together.
func (c *Client) Memory() int64 { return c.cache.limit }

// Product returns how many bytes the link to the store holds.
func (c *Client) Product() int64 { return c.source.link.Product() }

// mayFeed reports whether not too much of what feeds brought into memory is unread. With a disk that does not matter.
func (c *Client) mayFeed(limit int64) bool { return c.disk != nil || c.unread+c.maxSize <= limit }

// Stats is what a client has fetched so far, and what it waits for.
type Stats struct {
	ProvenChunks int64 // chunks of the client's disk that were proven anew, after an unclean stop
	CopiedChunks int64 // chunks that another image's disk had, or another place on this one's
	Fetched      int64 // chunks that came from the store
	BytesFetched int64 // of them, decoded

	Stalls    int64         // waits for a chunk
	StallTime time.Duration // of them, together
	Waiting   []Stall       // the waits that go on, the longest first
}

// Stats counts.
func (c *Client) Stats() Stats {
	s := Stats{
		ProvenChunks: c.counts[fromDisk].Load(), CopiedChunks: c.counts[fromDonor].Load(),
		Fetched: c.counts[fromStore].Load(), BytesFetched: c.fetched.Load(),
	}
	c.stalls.report(&s)
	return s
}
