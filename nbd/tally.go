package nbd

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Result is how a request was answered.
type Result int

// The results. Refused is what the client got wrong, Failed is the device's doing, or the server's end.
const (
	OK Result = iota
	Refused
	Failed
	results
)

// String is the result in lower case.
func (r Result) String() string { return [...]string{"ok", "refused", "failed"}[r] }

// kinds is how many commands are told apart; the last is all those that are not known.
const kinds = 9

// Tally is what clients have asked for so far.
type Tally struct {
	answered     [kinds][results]int64
	BytesRead    int64 // by requests that succeeded
	BytesWritten int64
}

// Answers is how often a command was answered with a result.
type Answers struct {
	Command Command
	Result  Result
	Count   int64
}

// Answers is how often each command was answered with each result, of those that ever were.
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

// Requests is how many requests were answered with a result.
func (t *Tally) Requests(r Result) (n int64) {
	for kind := range t.answered {
		n += t.answered[kind][r]
	}
	return n
}

func (t *Tally) add(other Tally) {
	for kind := range t.answered {
		for r := range t.answered[kind] {
			t.answered[kind][r] += other.answered[kind][r]
		}
	}
	t.BytesRead += other.BytesRead
	t.BytesWritten += other.BytesWritten
}

// Pending is a request that is being worked on. One whose data is resident is answered before anybody could see it.
type Pending struct {
	Command Command
	Offset  int64
	Length  int64
	Since   time.Time
}

// Client is a client that has chosen its export.
type Client struct {
	Number  int64 // it is no other's
	Address string
	Export  *Export
	Secure  bool // by TLS
	Since   time.Time
	Tally   Tally
	Pending []Pending // the longest first
}

// seat is a Client as it is counted. The counters are the connection's own, so that no two connections share a
// cache line for them.
type seat struct {
	client   Client // the counts and requests apart
	answered [kinds][results]atomic.Int64
	read     atomic.Int64
	written  atomic.Int64

	mu      sync.Mutex // guards what follows
	pending map[*Pending]struct{}
}

// count notes that a request was answered. It neither waits nor allocates.
func (s *seat) count(q request, err error) {
	result := OK
	if err != nil {
		result = resultOf(err)
	}
	s.answered[min(int(q.command), kinds-1)][result].Add(1)
	switch {
	case err != nil:
	case q.command == CmdRead:
		s.read.Add(int64(q.length))
	case q.command == CmdWrite:
		s.written.Add(int64(q.length))
	}
}

func resultOf(err error) Result {
	if r, ok := err.(*refusal); ok && r != errStopping { //nolint:errorlint // a device's error may wrap anything
		return Refused
	}
	return Failed
}

// begin notes that a request is being worked on, until end.
func (s *seat) begin(q request) *Pending {
	p := &Pending{q.command, int64(q.offset), int64(q.length), time.Now()}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending[p] = struct{}{}
	return p
}

func (s *seat) end(p *Pending) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pending, p)
}

func (s *seat) tally() (t Tally) {
	for kind := range t.answered {
		for r := range t.answered[kind] {
			t.answered[kind][r] = s.answered[kind][r].Load()
		}
	}
	t.BytesRead, t.BytesWritten = s.read.Load(), s.written.Load()
	return t
}

func (s *seat) now() Client {
	c := s.client
	c.Tally = s.tally()
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range s.pending {
		c.Pending = append(c.Pending, *p)
	}
	slices.SortFunc(c.Pending, func(a, b Pending) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Offset, b.Offset))
	})
	return c
}

// maxTotals is how many exports' totals are kept apart. Those of others, of which there may be any number in the
// course of time, are the total of "".
const maxTotals = 4096

// audience is the clients that are there, and what those have done that have gone. The zero value is ready.
type audience struct {
	refused atomic.Int64 // connections, for lack of a place

	mu     sync.Mutex // guards what follows
	last   int64
	seats  map[*seat]struct{}
	totals map[string]*Tally // of those that have gone, by export
}

func (a *audience) enter(address string, e *Export, secure bool) *seat {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.seats == nil {
		a.seats, a.totals = make(map[*seat]struct{}), make(map[string]*Tally)
	}
	a.last++
	s := &seat{pending: make(map[*Pending]struct{})}
	s.client = Client{Number: a.last, Address: address, Export: e, Secure: secure, Since: time.Now()}
	a.seats[s] = struct{}{}
	return s
}

// leave is called when all that the client asked for is answered.
func (a *audience) leave(s *seat) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.seats, s)
	merge(a.totals, s.client.Export.Name, s.tally())
}

func merge(totals map[string]*Tally, name string, t Tally) {
	if totals[name] == nil && len(totals) >= maxTotals {
		name = "" // one more, for all of them
	}
	if totals[name] == nil {
		totals[name] = new(Tally)
	}
	totals[name].add(t)
}

// Clients are the clients that have chosen an export and not left, in the order in which they came.
func (s *Server) Clients() []Client {
	a := &s.audience
	a.mu.Lock()
	seats := slices.SortedFunc(maps.Keys(a.seats), func(x, y *seat) int { return cmp.Compare(x.client.Number, y.client.Number) })
	a.mu.Unlock()
	var all []Client
	for _, s := range seats {
		all = append(all, s.now())
	}
	return all
}

// Totals is what clients have asked for so far, those that have left included, by the export's Name. Of more than
// 4096 names the rest is together under "".
func (s *Server) Totals() map[string]Tally {
	a := &s.audience
	a.mu.Lock()
	defer a.mu.Unlock()
	totals := make(map[string]*Tally, len(a.totals))
	for name, t := range a.totals {
		sum := *t
		totals[name] = &sum
	}
	for s := range a.seats {
		merge(totals, s.client.Export.Name, s.tally())
	}
	all := make(map[string]Tally, len(totals))
	for name, t := range totals {
		all[name] = *t
	}
	return all
}

// Usage is what the server has taken of its limits.
type Usage struct {
	Connections, MaxConnections int
	Accepted                    int64 // connections that have chosen an export so far
	Turned                      int64 // connections so far that there was no place for
	Bytes, MaxBytes             int64 // of requests and replies in memory
}

// Usage says how near the server is to its limits.
func (s *Server) Usage() Usage {
	a := &s.audience
	u := Usage{
		Connections: s.conns.count(), MaxConnections: s.maxConns(), Turned: a.refused.Load(),
		Bytes: int64(s.held.bytes()), MaxBytes: int64(s.maxBytes()),
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	u.Accepted = a.last
	return u
}
