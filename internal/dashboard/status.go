// Package dashboard shows what a server of images does: as metrics for Prometheus, as a page that is alive, and as
// JSON, over HTTP. It knows nothing of images, stores and protocols: a caller tells it how things are, in a Status. All
// that is shown comes from that one value.
package dashboard

import "time"

// Status is how things are. Its JSON is what /status.json serves: names stay, new ones may come. Times are RFC 3339,
// counts begin with the server.
type Status struct {
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	Now     time.Time `json:"now"`

	Exports     []Export    `json:"exports"`         // those that are open, one of each name
	Offered     int         `json:"exports_offered"` // those that clients may choose
	Clients     []Client    `json:"clients"`         // the longest there first
	Connections Connections `json:"connections"`
	InFlight    Room        `json:"in_flight"` // requests and replies in memory
	Memory      Room        `json:"memory"`    // chunks in memory
	Cache       *Cache      `json:"cache"`     // null without one
	Stores      []Store     `json:"stores"`
	Rates       Rates       `json:"rates"` // over the last seconds
}

// Room is bytes that are taken of those that may be.
type Room struct {
	Bytes int64 `json:"bytes"`
	Limit int64 `json:"limit_bytes"`
}

// Connections counts them, those included that have not chosen an export yet.
type Connections struct {
	Now     int   `json:"now"`
	Limit   int   `json:"limit"`
	Total   int64 `json:"total"`   // that have chosen an export
	Refused int64 `json:"refused"` // for lack of a place
}

// Export is an image under a name, all its versions together.
type Export struct {
	Name     string `json:"name"`
	Identity string `json:"identity"` // the name that never stands for another image
	Size     int64  `json:"size_bytes"`
	Local    int64  `json:"local_bytes"` // of it, that a read has without a store
	Map      string `json:"map"`         // see Cells
	Clients  int    `json:"clients"`

	Requests []Requests `json:"requests"`
	Served   int64      `json:"served_bytes"`
	Pending  int        `json:"pending_requests"`

	Reads      int64 `json:"reads"` // that the image was asked for, with success
	Wanted     int64 `json:"wanted_bytes"`
	MemoryHits int64 `json:"memory_hits"` // of the reads, answered at once
	DiskHits   int64 `json:"disk_hits"`

	FromStore  int64 `json:"store_chunks"`
	FromOther  int64 `json:"other_image_chunks"`
	FromDisk   int64 `json:"reproven_chunks"`
	Fetched    int64 `json:"fetched_bytes"` // from the store, decoded
	Prefetched int64 `json:"prefetched_bytes"`
	Used       int64 `json:"prefetched_used_bytes"`

	Failures  int64   `json:"read_failures"`
	Stalls    int64   `json:"stalls"`
	StallTime float64 `json:"stall_seconds"`
	Waiting   []Wait  `json:"waiting"` // the longest first
}

// Hits returns how many of the reads were answered at once.
func (e Export) Hits() int64 { return e.MemoryHits + e.DiskHits }

// Requests is how often a command was answered with a result.
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
	Error  string    `json:"error"` // of the store; "" while it just has not answered
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
	Pending  []Pending `json:"pending"` // the longest first
}

// Pending is a request that is being worked on.
type Pending struct {
	Command string    `json:"command"`
	Offset  int64     `json:"offset"`
	Length  int64     `json:"length"`
	Since   time.Time `json:"since"`
	Wait    *Wait     `json:"wait"` // what it waits for; null if that is no chunk
}

// Cache is images on disk.
type Cache struct {
	Bytes   int64 `json:"bytes"`
	Limit   int64 `json:"limit_bytes"` // -1 is none
	Evicted int64 `json:"evicted_bytes"`
	Dropped int64 `json:"dropped_chunks"` // not kept, since the disk was slow or failed
	Working bool  `json:"working"`        // false for a while after the disk has failed
}

// Store is where chunks come from.
type Store struct {
	Name      string    `json:"name"`
	Up        bool      `json:"up"` // false since it did not answer
	Since     time.Time `json:"since"`
	Error     string    `json:"error"` // why it is not up
	Requests  []Results `json:"requests"`
	InFlight  int64     `json:"in_flight_requests"`
	Stored    int64     `json:"stored_bytes"` // that came, as they are stored
	Retries   int64     `json:"retries"`
	GateLimit int       `json:"gate_limit"` // requests let in at once; 0 where there is no gate
}

// Results is how often requests to a store ended so.
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

// Cells is how many cells a Map has at most.
const Cells = 960

// levels are the cells' letters: tenths that are local, and all of it.
const levels = "0123456789a"

// Map draws an image of a size of which runs are local as a text with a letter for each cell, of Cells: 0 to 9 for the
// tenths of it that are local, and a when all of it is. It returns too how many bytes are.
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
			spread(sums, per, at, at+n)
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

// spread adds a run to the cells it lies in.
func spread(sums []int64, per, from, to int64) {
	for from < to {
		end := min((from/per+1)*per, to)
		sums[from/per] += end - from
		from = end
	}
}
