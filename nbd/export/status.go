package export

import (
	"context"
	"iter"
	"slices"
	"time"

	"cairn/blob/view"
	"cairn/internal/dashboard"
	"cairn/nbd"
)

const (
	maxPending = 16   // shown requests of a client, at most
	maxClosed  = 4096 // exports whose closed images are counted; without a limit they would accumulate
)

// Monitor builds the status of a server with a catalogue. Its methods must not be called
// concurrently.
type Monitor struct {
	server    *nbd.Server
	catalogue *Catalogue
	version   string
	began     time.Time

	previous map[*view.Image]imageStats // open images in the previous status
	closed   map[string]view.Stats      // last known counts of closed images, by export
}

// imageStats has the counts of an image.
type imageStats struct {
	export string
	stats  view.Stats
}

// NewMonitor returns a monitor of a server with the exports of c. version is the program's version.
func NewMonitor(server *nbd.Server, c *Catalogue, version string) *Monitor {
	return &Monitor{server: server, catalogue: c, version: version, began: time.Now(),
		previous: make(map[*view.Image]imageStats), closed: make(map[string]view.Stats)}
}

// Totals returns the counts from which the dashboard computes rates. It is cheap.
func (m *Monitor) Totals() (t dashboard.Totals) {
	for _, tally := range m.server.Totals() {
		t.Requests += countRequests(tally)
		t.Served += tally.BytesRead
	}
	for _, st := range m.catalogue.images.openStores() {
		_, stored := st.from.Downloaded()
		t.Stored += stored
	}
	return t
}

func countRequests(t nbd.Tally) int64 {
	return t.Requests(nbd.OK) + t.Requests(nbd.Refused) + t.Requests(nbd.Failed)
}

// Status returns the status of the server and its images, without rates.
func (m *Monitor) Status() dashboard.Status {
	images := m.catalogue.images
	u := m.server.Usage()
	memory, memoryLimit := images.cache.Usage()
	status := dashboard.Status{
		Version: m.version, Started: m.began, Now: time.Now(),
		Offered: m.countOffered(),
		Connections: dashboard.Connections{
			Now: u.Connections, Limit: u.MaxConnections, Total: u.Accepted, Refused: u.Refused},
		InFlight: dashboard.Usage{Bytes: u.Bytes, Limit: u.MaxBytes},
		Memory:   dashboard.Usage{Bytes: memory, Limit: memoryLimit},
		Stores:   []dashboard.Store{},
	}
	if images.dir != nil {
		c := images.dir.Usage()
		status.Cache = &dashboard.Cache{
			Bytes: c.Bytes, Limit: c.Limit, Evicted: c.Evicted, Dropped: c.Dropped,
			Sampled: c.Sampled, Damaged: c.Damaged, Working: c.Working}
	}
	status.Seeds = images.seeds.status()
	for _, st := range images.openStores() {
		status.Stores = append(status.Stores, st.status())
	}
	clients, opened := m.server.Clients(), m.catalogue.openExports()
	stats := m.countImages(opened)
	status.Exports = m.exportList(opened, stats, clients)
	status.Clients = clientList(clients, stats)
	return status
}

func (m *Monitor) countOffered() int {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	all, err := m.catalogue.All(ctx)
	if err != nil {
		return len(m.catalogue.fixed) // the directory cannot be read, which is logged elsewhere
	}
	return len(all)
}

// countImages returns the counts of all open images. It adds the counts of images that were closed
// since the previous call to m.closed.
func (m *Monitor) countImages(opened []*nbd.Export) map[*view.Image]imageStats {
	now := make(map[*view.Image]imageStats)
	for _, e := range opened {
		v := e.Device.(device).Image
		now[v] = imageStats{e.Name, v.Stats()}
	}
	for v, was := range m.previous {
		_, known := m.closed[was.export]
		if _, open := now[v]; !open && (known || len(m.closed) < maxClosed) {
			m.closed[was.export] = addStats(m.closed[was.export], was.stats)
		}
	}
	m.previous = now
	return now
}

// addStats adds the counters, but not the gauges.
func addStats(a, b view.Stats) view.Stats {
	a.Reads += b.Reads
	a.BytesWanted += b.BytesWanted
	a.MemoryHits += b.MemoryHits
	a.DiskHits += b.DiskHits
	a.ProvenChunks += b.ProvenChunks
	a.CopiedChunks += b.CopiedChunks
	a.SeedChunks += b.SeedChunks
	a.BytesSeeded += b.BytesSeeded
	a.DeltaChunks += b.DeltaChunks
	a.BytesMade += b.BytesMade
	a.Fetched += b.Fetched
	a.BytesFetched += b.BytesFetched
	a.BytesAhead += b.BytesAhead
	a.BytesUsed += b.BytesUsed
	a.Failures += b.Failures
	a.Stalls += b.Stalls
	a.StallTime += b.StallTime
	return a
}

// exportList returns the open exports. All versions with the same name are one export.
func (m *Monitor) exportList(
	opened []*nbd.Export, images map[*view.Image]imageStats, clients []nbd.Client,
) []dashboard.Export {
	totals := m.server.Totals()
	all := []dashboard.Export{}
	place := make(map[string]int)
	stats := make(map[string]view.Stats)
	for _, e := range opened {
		v := e.Device.(device).Image
		c := images[v]
		if _, known := place[e.Name]; !known {
			place[e.Name] = len(all)
			stats[e.Name] = m.closed[e.Name]
			d := dashboard.Export{Name: e.Name, Identity: e.Canonical, Size: v.Size(), Waiting: []dashboard.Wait{}}
			drawMaps(&d, v)
			all = append(all, d)
		}
		d := &all[place[e.Name]]
		stats[e.Name] = addStats(stats[e.Name], c.stats)
		d.Waiting = append(d.Waiting, waitList(c.stats)...)
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

// drawMaps fills in the maps of an image.
func drawMaps(d *dashboard.Export, v *view.Image) {
	var lengths []int64
	var tiers []view.Tier
	for n, tier := range v.Tiers(0, v.Size()) {
		lengths, tiers = append(lengths, n), append(tiers, tier)
	}
	runs := func(are func(view.Tier) bool) iter.Seq2[int64, bool] {
		return func(yield func(int64, bool) bool) {
			for i, n := range lengths {
				if !yield(n, are(tiers[i])) {
					return
				}
			}
		}
	}
	d.Map, d.Local = dashboard.Map(v.Size(), runs(func(t view.Tier) bool { return t == view.Local || t == view.InSeed }))
	if slices.Contains(tiers, view.InSeed) {
		d.SeedMap, d.LocalInSeeds = dashboard.Map(v.Size(), runs(func(t view.Tier) bool { return t == view.InSeed }))
	}
	for i, tier := range tiers {
		if tier == view.InDelta {
			d.InDeltas += lengths[i]
		}
	}
}

func fillExport(d *dashboard.Export, s view.Stats, t nbd.Tally) {
	d.Served = t.BytesRead
	d.Requests = []dashboard.Requests{}
	for _, a := range t.Answers() {
		d.Requests = append(d.Requests,
			dashboard.Requests{Command: a.Command.String(), Result: a.Result.String(), Count: a.Count})
	}
	d.Reads, d.Wanted, d.MemoryHits, d.DiskHits = s.Reads, s.BytesWanted, s.MemoryHits, s.DiskHits
	d.FromStore, d.FromOther, d.FromDisk, d.Fetched = s.Fetched, s.CopiedChunks, s.ProvenChunks, s.BytesFetched
	d.FromSeeds, d.SeedBytes = s.SeedChunks, s.BytesSeeded
	d.FromDeltas, d.DeltaBytes = s.DeltaChunks, s.BytesMade
	d.Prefetched, d.Used = s.BytesAhead, s.BytesUsed
	d.Failures, d.Stalls, d.StallTime = s.Failures, s.Stalls, s.StallTime.Seconds()
	slices.SortStableFunc(d.Waiting, func(a, b dashboard.Wait) int { return a.Since.Compare(b.Since) })
}

func waitList(s view.Stats) (all []dashboard.Wait) {
	for _, w := range s.Waiting {
		d := dashboard.Wait{Chunk: w.Chunk.Digest.String(), Offset: w.Chunk.Offset, Size: w.Chunk.Size, Since: w.Since}
		if w.Err != nil {
			d.Error = w.Err.Error()
		}
		all = append(all, d)
	}
	return all
}

func clientList(clients []nbd.Client, images map[*view.Image]imageStats) []dashboard.Client {
	all := []dashboard.Client{}
	for _, c := range clients {
		d := dashboard.Client{ID: c.Number, Address: c.Address, Export: c.Export.Name, TLS: c.Secure, Since: c.Since,
			Requests: countRequests(c.Tally), Served: c.Tally.BytesRead, Pending: []dashboard.Pending{}}
		if c.Address == "" || c.Address == "@" {
			d.Address = "unix socket" // the client of a unix socket has no address
		}
		waiting := waitList(images[c.Export.Device.(device).Image].stats)
		for _, p := range c.Pending[:min(len(c.Pending), maxPending)] {
			d.Pending = append(d.Pending, dashboard.Pending{Command: p.Command.String(), Offset: p.Offset, Length: p.Length,
				Since: p.Since, Wait: findWait(p, waiting)})
		}
		all = append(all, d)
	}
	return all
}

// findWait returns a wait for a chunk that the request reads, or nil.
func findWait(p nbd.Pending, waiting []dashboard.Wait) *dashboard.Wait {
	for _, w := range waiting {
		if w.Offset < p.Offset+p.Length && p.Offset < w.Offset+w.Size {
			return &w
		}
	}
	return nil
}
