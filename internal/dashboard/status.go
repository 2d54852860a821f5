// Package dashboard shows the status of a server of images over HTTP: as metrics for Prometheus, as
// a page that updates itself, and as JSON. It knows nothing of images, stores and protocols: the
// caller provides a Status, which has all that is shown.
package dashboard

import "time"

// Status is the state of a server. /status.json serves it as JSON: fields may be added, but their
// names do not change. Times are RFC 3339. Counters start with the server.
type Status struct {
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	Now     time.Time `json:"now"`

	Exports     []Export    `json:"exports"`         // open ones; versions of the same name are one export
	Offered     int         `json:"exports_offered"` // number of exports that clients may choose
	Clients     []Client    `json:"clients"`         // oldest first
	Connections Connections `json:"connections"`
	InFlight    Usage       `json:"in_flight"` // requests and replies in memory
	Memory      Usage       `json:"memory"`    // chunks in memory
	Cache       *Cache      `json:"cache"`     // null without one
	Seeds       []Seed      `json:"seeds"`
	Stores      []Store     `json:"stores"`
	Rates       Rates       `json:"rates"` // over the last seconds
}

// Usage compares used bytes with their limit.
type Usage struct {
	Bytes int64 `json:"bytes"`
	Limit int64 `json:"limit_bytes"`
}

// Connections counts NBD connections, including ones without an export yet.
type Connections struct {
	Now     int   `json:"now"`
	Limit   int   `json:"limit"`
	Total   int64 `json:"total"`   // connections that have chosen an export, so far
	Refused int64 `json:"refused"` // connections refused at the limit or evicted for others, so far
}

// Export is an image under a name. It includes all versions with that name.
type Export struct {
	Name     string `json:"name"`
	Identity string `json:"identity"` // canonical name, which never means another image
	Size     int64  `json:"size_bytes"`
	Local    int64  `json:"local_bytes"` // bytes that can be read without a store
	Map      string `json:"map"`         // see Cells
	Clients  int    `json:"clients"`

	LocalInSeeds int64  `json:"local_in_seeds_bytes"` // bytes of Local that only seeds may have, not verified yet
	SeedMap      string `json:"seed_map"`             // of these bytes; "" without any
	InDeltas     int64  `json:"in_deltas_bytes"`      // bytes that are not local, and that a delta may make

	Requests []Requests `json:"requests"`
	Served   int64      `json:"served_bytes"`
	Pending  int        `json:"pending_requests"`

	Reads      int64 `json:"reads"` // successful reads of the image
	Wanted     int64 `json:"wanted_bytes"`
	MemoryHits int64 `json:"memory_hits"` // reads that were answered at once
	DiskHits   int64 `json:"disk_hits"`

	FromStore  int64 `json:"store_chunks"`
	FromOther  int64 `json:"other_image_chunks"`
	FromDisk   int64 `json:"reproven_chunks"`
	FromSeeds  int64 `json:"seed_chunks"`
	SeedBytes  int64 `json:"seed_bytes"` // from seeds
	FromDeltas int64 `json:"delta_chunks"`
	DeltaBytes int64 `json:"delta_bytes"`   // of the chunks made from deltas
	Fetched    int64 `json:"fetched_bytes"` // from stores, decoded
	Prefetched int64 `json:"prefetched_bytes"`
	Used       int64 `json:"prefetched_used_bytes"`

	Failures  int64   `json:"read_failures"`
	Stalls    int64   `json:"stalls"`
	StallTime float64 `json:"stall_seconds"`
	Waiting   []Wait  `json:"waiting"` // oldest first
}

// Hits returns the number of reads that were answered at once.
func (e Export) Hits() int64 { return e.MemoryHits + e.DiskHits }

// Requests is the number of requests of a command that had a result.
type Requests struct {
	Command string `json:"command"`
	Result  string `json:"result"`
	Count   int64  `json:"count"`
}

// Wait is a read that waits for a chunk.
type Wait struct {
	Chunk  string    `json:"chunk"`
	Offset int64     `json:"offset"`
	Size   int64     `json:"size_bytes"`
	Since  time.Time `json:"since"`
	Error  string    `json:"error"` // of the store; "" if it has not answered yet
}

// Client is a connection that has chosen an export.
type Client struct {
	ID       int64     `json:"id"`
	Address  string    `json:"address"`
	Export   string    `json:"export"`
	TLS      bool      `json:"tls"`
	Since    time.Time `json:"since"`
	Requests int64     `json:"requests"`
	Served   int64     `json:"served_bytes"`
	Pending  []Pending `json:"pending"` // oldest first
}

// Pending is a request in progress.
type Pending struct {
	Command string    `json:"command"`
	Offset  int64     `json:"offset"`
	Length  int64     `json:"length"`
	Since   time.Time `json:"since"`
	Wait    *Wait     `json:"wait"` // wait for a chunk; null without one
}

// Cache is the use of the disk by images.
type Cache struct {
	Bytes   int64 `json:"bytes"`
	Limit   int64 `json:"limit_bytes"` // -1: no limit
	Evicted int64 `json:"evicted_bytes"`
	Dropped int64 `json:"dropped_chunks"` // not kept because the disk was slow or failed
	Sampled int64 `json:"sampled_bytes"`  // read and hashed again, to find damage
	Damaged int64 `json:"damaged_chunks"` // that were damaged or unreadable then
	Working bool  `json:"working"`        // false for a while after the disk has failed
}

// Seed is a local file that may hold chunks of the images.
type Seed struct {
	Name   string `json:"name"`
	State  string `json:"state"` // one of the constants below
	Error  string `json:"error"` // why it is not read, or not now
	Size   int64  `json:"size_bytes"`
	Chunks int64  `json:"chunks"` // read and found right
	Bytes  int64  `json:"bytes"`  // of these chunks
	Wrong  int64  `json:"wrong_chunks"`
}

// The states of a Seed.
const (
	SeedLearning = "learning" // its index is being read, or it is being scanned
	SeedReady    = "ready"
	SeedFailed   = "failed" // it is not read any more
)

// Store is a source of chunks.
type Store struct {
	Name      string    `json:"name"`
	Up        bool      `json:"up"` // false while the store is unavailable, according to its last answer
	Since     time.Time `json:"since"`
	Error     string    `json:"error"` // reason if not up
	Requests  []Results `json:"requests"`
	InFlight  int64     `json:"in_flight_requests"`
	Stored    int64     `json:"stored_bytes"` // bytes received, as they are stored
	Retries   int64     `json:"retries"`
	GateLimit int       `json:"gate_limit"` // current in-flight limit; 0 without one
}

// Results is the number of requests to a store that had a result.
type Results struct {
	Result string `json:"result"`
	Count  int64  `json:"count"`
}

// Rates are per second.
type Rates struct {
	Requests float64 `json:"requests"`
	Served   float64 `json:"served_bytes"`
	Stored   float64 `json:"stored_bytes"`
}

// Cells is the maximum number of cells in a Map.
const Cells = 960

// levels are the letters of cells: tenths that are local, and a for all of the cell.
const levels = "0123456789a"

// Map returns the map of an image: at most Cells cells of equal size, each a letter of levels. runs
// yields the runs of the image in order, which are local or not. Map also returns the number of
// local bytes.
func Map(size int64, runs func(yield func(n int64, local bool) bool)) (cells string, local int64) {
	count := min(int64(Cells), max(1, (size+4095)/4096))
	if size == 0 {
		return "", 0
	}
	per := (size + count - 1) / count
	count = (size + per - 1) / per
	sums := make([]int64, count)
	at := int64(0)
	for n, is := range runs {
		if is {
			local += n
			for from := at; from < at+n; {
				end := min((from/per+1)*per, at+n)
				sums[from/per] += end - from
				from = end
			}
		}
		at += n
	}
	text := make([]byte, count)
	for i, sum := range sums {
		whole := min(per, size-int64(i)*per)
		text[i] = levels[sum*10/whole]
	}
	return string(text), local
}
