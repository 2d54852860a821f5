package nbd

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Result is the result of a request.
type Result int

// The results. Refused requests are the client's errors. Failed ones are errors of the device, or
// the server is stopping.
const (
	OK Result = iota
	Refused
	Failed
	numResults
)

// String returns the result in lower case.
func (r Result) String() string { return [...]string{"ok", "refused", "failed"}[r] }

// numCommands is the number of commands that are counted separately. The last one stands for all
// unknown commands.
const numCommands = 9

// Tally counts answered requests.
type Tally struct {
	answered     [numCommands][numResults]int64
	BytesRead    int64 // of successful requests
	BytesWritten int64
}

// Answers is the number of requests of a command that had a result.
type Answers struct {
	Command Command
	Result  Result
	Count   int64
}

// Answers returns the counts by command and result, without zero counts.
func (t *Tally) Answers() (all []Answers) {
	for kind := range t.answered {
		for r, n := range t.answered[kind] {
			if n > 0 {
				all = append(all, Answers{Command(kind), Result(r), n})
			}
		}
	}
	return all
}

// Requests returns the number of requests that had a result.
func (t *Tally) Requests(r Result) (n int64) {
	for kind := range t.answered {
		n += t.answered[kind][r]
	}
	return n
}

func (t *Tally) addTally(other Tally) {
	for kind := range t.answered {
		for r := range t.answered[kind] {
			t.answered[kind][r] += other.answered[kind][r]
		}
	}
	t.BytesRead += other.BytesRead
	t.BytesWritten += other.BytesWritten
}

// Pending is a request in progress. Reads of resident data, BLOCK_STATUS requests and refused
// requests never appear, because the server answers them without device I/O.
type Pending struct {
	Command Command
	Offset  int64
	Length  int64
	Since   time.Time
}

// Client is a connection that has chosen an export.
type Client struct {
	Number  int64 // unique
	Address string
	Export  *Export
	Secure  bool // uses TLS
	Since   time.Time
	Tally   Tally
	Pending []Pending // oldest first
}

// activeClient counts the requests of one client. Each client has its own counters, so that no two
// connections share a cache line for them.
type activeClient struct {
	info         Client // without Tally and Pending
	answered     [numCommands][numResults]atomic.Int64
	bytesRead    atomic.Int64
	bytesWritten atomic.Int64

	mu      sync.Mutex // guards the field below
	pending map[*Pending]struct{}
}

// countReply counts the reply to a request. It neither blocks nor allocates.
func (c *activeClient) countReply(q request, err error) {
	result := OK
	if err != nil {
		result = resultOf(err)
	}
	c.answered[min(int(q.command), numCommands-1)][result].Add(1)
	switch {
	case err != nil:
	case q.command == CmdRead:
		c.bytesRead.Add(int64(q.length))
	case q.command == CmdWrite:
		c.bytesWritten.Add(int64(q.length))
	}
}

func resultOf(err error) Result {
	if r, ok := err.(*refusal); ok && r != errStopping { //nolint:errorlint // a device's error may wrap anything
		return Refused
	}
	return Failed
}

// beginRequest adds a request in progress, until endRequest.
func (c *activeClient) beginRequest(q request) *Pending {
	p := &Pending{q.command, int64(q.offset), int64(q.length), time.Now()}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pending[p] = struct{}{}
	return p
}

func (c *activeClient) endRequest(p *Pending) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, p)
}

func (c *activeClient) loadTally() (t Tally) {
	for kind := range t.answered {
		for r := range t.answered[kind] {
			t.answered[kind][r] = c.answered[kind][r].Load()
		}
	}
	t.BytesRead, t.BytesWritten = c.bytesRead.Load(), c.bytesWritten.Load()
	return t
}

func (c *activeClient) snapshot() Client {
	info := c.info
	info.Tally = c.loadTally()
	c.mu.Lock()
	defer c.mu.Unlock()
	for p := range c.pending {
		info.Pending = append(info.Pending, *p)
	}
	slices.SortFunc(info.Pending, func(a, b Pending) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Offset, b.Offset))
	})
	return info
}

// maxTotals is the number of exports with separate totals. The number of exports over time has no
// limit, so all others share the total of "".
const maxTotals = 4096

// clientTable has the active clients, and the totals of the disconnected ones. The zero value is
// ready to use.
type clientTable struct {
	refused atomic.Int64 // connections, over the limit or evicted

	mu         sync.Mutex // guards the fields below
	lastNumber int64
	active     map[*activeClient]struct{}
	totals     map[string]*Tally // of disconnected clients, by export
}

func (t *clientTable) addClient(address string, e *Export, secure bool) *activeClient {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.active == nil {
		t.active, t.totals = make(map[*activeClient]struct{}), make(map[string]*Tally)
	}
	t.lastNumber++
	c := &activeClient{pending: make(map[*Pending]struct{})}
	c.info = Client{Number: t.lastNumber, Address: address, Export: e, Secure: secure, Since: time.Now()}
	t.active[c] = struct{}{}
	return c
}

// removeClient is called when all of the client's requests are answered.
func (t *clientTable) removeClient(c *activeClient) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.active, c)
	mergeTotals(t.totals, c.info.Export.Name, c.loadTally())
}

func mergeTotals(totals map[string]*Tally, name string, t Tally) {
	if totals[name] == nil && len(totals) >= maxTotals {
		name = "" // shared by all further names
	}
	if totals[name] == nil {
		totals[name] = new(Tally)
	}
	totals[name].addTally(t)
}

// Clients returns the connected clients that have chosen an export, oldest first.
func (s *Server) Clients() []Client {
	table := &s.clients
	table.mu.Lock()
	clients := slices.SortedFunc(maps.Keys(table.active), func(x, y *activeClient) int { return cmp.Compare(x.info.Number, y.info.Number) })
	table.mu.Unlock()
	var all []Client
	for _, c := range clients {
		all = append(all, c.snapshot())
	}
	return all
}

// Totals returns the counts of all clients so far by Export.Name, including disconnected ones.
// Names beyond 4096 are counted together under "".
func (s *Server) Totals() map[string]Tally {
	table := &s.clients
	table.mu.Lock()
	defer table.mu.Unlock()
	totals := make(map[string]*Tally, len(table.totals))
	for name, t := range table.totals {
		sum := *t
		totals[name] = &sum
	}
	for c := range table.active {
		mergeTotals(totals, c.info.Export.Name, c.loadTally())
	}
	all := make(map[string]Tally, len(totals))
	for name, t := range totals {
		all[name] = *t
	}
	return all
}

// Usage compares the use of connections and memory with the limits.
type Usage struct {
	Connections, MaxConnections int
	Accepted                    int64 // connections that have chosen an export, so far
	Refused                     int64 // connections refused at the limit or evicted for others, so far
	Bytes, MaxBytes             int64 // requests and replies in memory
}

// Usage returns the present use.
func (s *Server) Usage() Usage {
	table := &s.clients
	u := Usage{
		Connections: s.conns.count(), MaxConnections: s.maxConns(), Refused: table.refused.Load(),
		Bytes: int64(s.memory.usedBytes()), MaxBytes: int64(s.maxBytes()),
	}
	table.mu.Lock()
	defer table.mu.Unlock()
	u.Accepted = table.lastNumber
	return u
}
