package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/blob/view"
	"cairn/internal/daemon"
	"cairn/internal/dashboard"
	"cairn/nbd"
	"cairn/store"
	"cairn/store/locate"
	"cairn/store/supply"
)

// seeing is where one can see what serve does.
type seeing struct {
	metrics string
	address daemon.Address
}

func (f *seeing) add(c *cobra.Command) {
	c.Flags().StringVar(&f.metrics, "metrics", "",
		"`address` for Prometheus metrics and a status page: tcp:HOST:PORT or unix:PATH; without authentication (default: none)")
	check(c, func([]string) error {
		if f.metrics == "" {
			return nil
		}
		var err error
		if f.address, err = daemon.ParseAddress(f.metrics); err != nil {
			return fmt.Errorf("--metrics %s: %w", f.metrics, err)
		}
		return nil
	})
}

// listen opens the address, if there is one.
func (f *seeing) listen(ctx context.Context) ([]net.Listener, error) {
	if f.metrics == "" {
		return nil, nil
	}
	listeners, err := daemon.Listen(ctx, 0o600, f.address)
	if err != nil {
		return nil, fmt.Errorf("--metrics: %w", err)
	}
	return listeners, nil
}

// open returns what answers at the address, if there is one, until a context ends.
func (f *seeing) open(listeners []net.Listener, server *nbd.Server, o *offer) func(context.Context) {
	if len(listeners) == 0 {
		return func(context.Context) {}
	}
	for _, l := range listeners {
		if l.Addr().Network() == "unix" {
			continue
		}
		say("metrics and status: http://%v/", l.Addr())
		if daemon.ReachesOthers(l.Addr()) {
			say("warning: %v has no authentication: whoever reaches it sees names of images, clients and stores", l.Addr())
		}
	}
	s := &sight{server: server, offer: o, began: time.Now(), last: map[*view.Image]counted{}, past: map[string]view.Stats{}}
	board := dashboard.New(s.look, s.totals)
	return func(ctx context.Context) {
		if err := board.Serve(ctx, listeners...); err != nil {
			say("warning: metrics are not served any more: %v", err)
		}
	}
}

// sight sees what a server does. One goroutine looks at a time.
type sight struct {
	server *nbd.Server
	offer  *offer
	began  time.Time

	last map[*view.Image]counted // what was open when it was looked at last
	past map[string]view.Stats   // by export, what images have counted that are closed now, when they were seen last
}

// counted is what an image has counted.
type counted struct {
	export string
	stats  view.Stats
}

// maxPast is how many exports are remembered that have closed images: there may be any number in the course of time.
const maxPast = 4096

// totals is what rates are made of.
func (s *sight) totals() (t dashboard.Totals) {
	for _, tally := range s.server.Totals() {
		t.Requests += tally.Requests(nbd.OK) + tally.Requests(nbd.Refused) + tally.Requests(nbd.Failed)
		t.Served += tally.BytesRead
	}
	for _, st := range s.offer.images.seen.list() {
		_, stored := st.from.Downloaded()
		t.Stored += stored
	}
	return t
}

func (s *sight) look() dashboard.Status {
	u := s.server.Usage()
	memory, memoryLimit := s.offer.images.cache.Usage()
	status := dashboard.Status{
		Version: versionText(), Started: s.began, Now: time.Now(),
		Offered:     s.offered(),
		Connections: dashboard.Connections{Now: u.Connections, Limit: u.MaxConnections, Total: u.Accepted, Refused: u.Turned},
		InFlight:    dashboard.Room{Bytes: u.Bytes, Limit: u.MaxBytes},
		Memory:      dashboard.Room{Bytes: memory, Limit: memoryLimit},
		Stores:      []dashboard.Store{},
	}
	if d := s.offer.images.dir; d != nil {
		c := d.Usage()
		status.Cache = &dashboard.Cache{Bytes: c.Bytes, Limit: c.Limit, Evicted: c.Evicted, Dropped: c.Dropped, Working: c.Working}
	}
	for _, st := range s.offer.images.seen.list() {
		status.Stores = append(status.Stores, st.status())
	}
	clients := s.server.Clients()
	images := s.lookAtImages()
	status.Exports = s.exports(images, clients)
	status.Clients = clientList(clients, images)
	return status
}

func (s *sight) offered() int {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	all, err := s.offer.All(ctx)
	if err != nil {
		return len(s.offer.static) // a directory that cannot be read is the log's affair
	}
	return len(all)
}

// lookAtImages looks at all open images, and remembers what those have counted that have been closed since.
func (s *sight) lookAtImages() map[*view.Image]counted {
	now := make(map[*view.Image]counted)
	for _, e := range s.offer.opened() {
		v := e.Device.(exported).Image
		now[v] = counted{e.Name, v.Stats()}
	}
	for v, was := range s.last {
		_, known := s.past[was.export]
		if _, open := now[v]; !open && (known || len(s.past) < maxPast) {
			s.past[was.export] = plus(s.past[was.export], was.stats)
		}
	}
	s.last = now
	return now
}

// plus adds up what only grows.
func plus(a, b view.Stats) view.Stats {
	a.Reads += b.Reads
	a.BytesWanted += b.BytesWanted
	a.MemoryHits += b.MemoryHits
	a.DiskHits += b.DiskHits
	a.ProvenChunks += b.ProvenChunks
	a.CopiedChunks += b.CopiedChunks
	a.Fetched += b.Fetched
	a.BytesFetched += b.BytesFetched
	a.BytesAhead += b.BytesAhead
	a.BytesUsed += b.BytesUsed
	a.Failures += b.Failures
	a.Stalls += b.Stalls
	a.StallTime += b.StallTime
	return a
}

// opened are the exports that are open: of two of a name the one first that the name means now.
func (o *offer) opened() []*nbd.Export {
	all := slices.Clone(o.static)
	if o.watched != nil {
		all = append(all, o.watched.opened()...)
	}
	return all
}

// opened are the exports that are open, the present versions first.
func (w *watch) opened() (all []*nbd.Export) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(w.files)) {
		if image := w.files[name].image; image != nil && image.export != nil {
			all = append(all, image.export)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(w.leased)) {
		if image := w.leased[name]; image.export != nil {
			all = append(all, image.export)
		}
	}
	return all
}

// exports puts together all that goes by one name.
func (s *sight) exports(images map[*view.Image]counted, clients []nbd.Client) []dashboard.Export {
	totals := s.server.Totals()
	all := []dashboard.Export{}
	place := make(map[string]int)
	stats := make(map[string]view.Stats)
	for _, e := range s.offer.opened() {
		v := e.Device.(exported).Image
		c, seen := images[v]
		if !seen {
			continue // it was opened just now
		}
		if _, known := place[e.Name]; !known {
			place[e.Name] = len(all)
			stats[e.Name] = s.past[e.Name]
			d := dashboard.Export{Name: e.Name, Identity: e.Canonical, Size: v.Size(), Waiting: []dashboard.Wait{}}
			d.Map, d.Local = dashboard.Map(v.Size(), v.Cached(0, v.Size()))
			all = append(all, d)
		}
		d := &all[place[e.Name]]
		stats[e.Name] = plus(stats[e.Name], c.stats)
		d.Waiting = append(d.Waiting, waits(c.stats)...)
	}
	for i := range all {
		fillExport(&all[i], stats[all[i].Name], totals[all[i].Name])
	}
	for _, c := range clients {
		if i, known := place[c.Export.Name]; known {
			all[i].Clients++
			all[i].Pending += len(c.Pending)
		}
	}
	return all
}

func fillExport(d *dashboard.Export, s view.Stats, t nbd.Tally) {
	d.Served = t.BytesRead
	d.Requests = []dashboard.Requests{}
	for _, a := range t.Answers() {
		d.Requests = append(d.Requests, dashboard.Requests{Command: a.Command.String(), Result: a.Result.String(), Count: a.Count})
	}
	d.Reads, d.Wanted, d.MemoryHits, d.DiskHits = s.Reads, s.BytesWanted, s.MemoryHits, s.DiskHits
	d.FromStore, d.FromOther, d.FromDisk, d.Fetched = s.Fetched, s.CopiedChunks, s.ProvenChunks, s.BytesFetched
	d.Prefetched, d.Used = s.BytesAhead, s.BytesUsed
	d.Failures, d.Stalls, d.StallTime = s.Failures, s.Stalls, s.StallTime.Seconds()
	slices.SortStableFunc(d.Waiting, func(a, b dashboard.Wait) int { return a.Since.Compare(b.Since) })
}

func waits(s view.Stats) (all []dashboard.Wait) {
	for _, w := range s.Waiting {
		d := dashboard.Wait{Chunk: w.Chunk.Digest.String(), Offset: w.Chunk.Offset, Size: w.Chunk.Size, Since: w.Since}
		if w.Err != nil {
			d.Error = w.Err.Error()
		}
		all = append(all, d)
	}
	return all
}

// maxPending is how many requests of a client are told of.
const maxPending = 16

func clientList(clients []nbd.Client, images map[*view.Image]counted) []dashboard.Client {
	all := []dashboard.Client{}
	for _, c := range clients {
		t := c.Tally
		d := dashboard.Client{ID: c.Number, Address: addressOf(c), Export: c.Export.Name, TLS: c.Secure, Since: c.Since,
			Requests: t.Requests(nbd.OK) + t.Requests(nbd.Refused) + t.Requests(nbd.Failed), Served: t.BytesRead, Pending: []dashboard.Pending{}}
		waiting := waits(images[c.Export.Device.(exported).Image].stats)
		for _, p := range c.Pending[:min(len(c.Pending), maxPending)] {
			d.Pending = append(d.Pending, dashboard.Pending{Command: p.Command.String(), Offset: p.Offset, Length: p.Length,
				Since: p.Since, Wait: waitOf(p, waiting)})
		}
		all = append(all, d)
	}
	return all
}

// addressOf is where a client is. One on a unix socket has no address.
func addressOf(c nbd.Client) string {
	if c.Address == "" || c.Address == "@" {
		return "unix socket"
	}
	return c.Address
}

// waitOf is the chunk that a request waits for, of those that somebody waits for.
func waitOf(p nbd.Pending, waiting []dashboard.Wait) *dashboard.Wait {
	for _, w := range waiting {
		if w.Offset < p.Offset+p.Length && p.Offset < w.Offset+w.Size {
			return &w
		}
	}
	return nil
}

// The results of asking a store.
const (
	gotOK = iota
	gotNotFound
	gotDamaged
	gotDenied
	gotUnavailable
	gotCancelled
	gotOther
	gots
)

func gotWord(result int) string {
	return [...]string{"ok", "not_found", "damaged", "denied", "unavailable", "cancelled", "other"}[result]
}

func gotOf(ctx context.Context, err error) int {
	switch {
	case err == nil:
		return gotOK
	case ctx.Err() != nil:
		return gotCancelled
	case errors.Is(err, store.ErrUnavailable):
		return gotUnavailable
	case is[*store.CorruptError](err):
		return gotDamaged
	case errors.Is(err, store.ErrDenied):
		return gotDenied
	case errors.Is(err, store.ErrNotFound):
		return gotNotFound
	}
	return gotOther
}

// seenStores are the stores that images are fetched from. The zero value is ready.
type seenStores struct {
	mu  sync.Mutex // guards what follows
	all []*seenStore
}

// add returns a source's chunks, and sees what becomes of asking for them from now on.
func (s *seenStores) add(locations []locate.Location, a blob.Algorithm, from *supply.Supply) store.Getter {
	var names []string
	for _, at := range locations {
		names = append(names, at.String())
	}
	st := &seenStore{name: strings.Join(names, " "), from: from, up: true, since: time.Now(), failed: map[blob.Digest]struct{}{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.name = s.unused(st.name, a)
	s.all = append(s.all, st)
	return st
}

// unused is a name that no other store has: metrics of one name twice would be no metrics at all. What tells stores
// apart may be a secret, that no name shows.
func (s *seenStores) unused(name string, a blob.Algorithm) string {
	taken := func(name string) bool {
		return slices.ContainsFunc(s.all, func(other *seenStore) bool { return other.name == name })
	}
	free := name
	for n := 1; taken(free); n++ {
		free = fmt.Sprintf("%s (%v)", name, a)
		if n > 1 {
			free = fmt.Sprintf("%s (%v, %d)", name, a, n)
		}
	}
	return free
}

func (s *seenStores) list() []*seenStore {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.all)
}

// seenStore sees what becomes of asking for chunks.
type seenStore struct {
	name              string
	from              *supply.Supply
	inFlight, retries atomic.Int64
	results           [gots]atomic.Int64

	mu     sync.Mutex // guards what follows
	up     bool
	since  time.Time
	why    error
	failed map[blob.Digest]struct{} // that the store was not there for, and that are likely to be asked for again
}

// maxFailed is how many chunks are remembered that a store was not there for.
const maxFailed = 4096

var _ store.Getter = (*seenStore)(nil)

// Get implements store.Getter.
func (s *seenStore) Get(ctx context.Context, wants []store.Want, done func(i int, err error)) {
	for _, w := range wants {
		s.begin(w.Digest)
	}
	s.from.Get(ctx, wants, func(i int, err error) {
		s.end(wants[i].Digest, gotOf(ctx, err), err)
		done(i, err)
	})
}

func (s *seenStore) begin(d blob.Digest) {
	s.inFlight.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, again := s.failed[d]; again {
		s.retries.Add(1)
		delete(s.failed, d)
	}
}

func (s *seenStore) end(d blob.Digest, result int, err error) {
	s.inFlight.Add(-1)
	s.results[result].Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case result == gotCancelled:
		return
	case result == gotUnavailable:
		s.why = err
		if len(s.failed) < maxFailed {
			s.failed[d] = struct{}{}
		}
	default:
		s.why = nil
	}
	if up := s.why == nil; up != s.up {
		s.up, s.since = up, time.Now()
	}
}

func (s *seenStore) status() dashboard.Store {
	_, stored := s.from.Downloaded()
	d := dashboard.Store{Name: s.name, InFlight: s.inFlight.Load(), Stored: stored, Retries: s.retries.Load()}
	for r := range s.results {
		d.Requests = append(d.Requests, dashboard.Results{Result: gotWord(r), Count: s.results[r].Load()})
	}
	d.GateLimit = s.from.Limit()
	s.mu.Lock()
	defer s.mu.Unlock()
	d.Up, d.Since = s.up, s.since
	if s.why != nil {
		d.Error = s.why.Error()
	}
	return d
}
