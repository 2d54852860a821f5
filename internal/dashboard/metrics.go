package dashboard

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/expfmt"
)

// maxExports is the number of exports that have series of their own, which bounds the number of
// series.
const maxExports = 256

// maxSeeds is the same for seeds.
const maxSeeds = 256

// collector exports a Status to Prometheus. It is unchecked, because the set of series changes.
type collector struct{ getStatus func() Status }

var _ prometheus.Collector = collector{}

// Describe sends nothing, which makes the collector unchecked.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	s := c.getStatus()
	all := metricSender{out: out}
	all.sendServer(s)
	for _, e := range s.Exports[:min(len(s.Exports), maxExports)] {
		metricSender{out, []string{"export", toLabel(e.Name)}}.sendExport(e, s.Now)
	}
	for _, seed := range s.Seeds[:min(len(s.Seeds), maxSeeds)] {
		metricSender{out, []string{"seed", toLabel(seed.Name)}}.sendSeed(seed)
	}
	for _, st := range s.Stores {
		metricSender{out, []string{"store", toLabel(st.Name)}}.sendStore(st)
	}
	if s.Cache != nil {
		all.sendCache(*s.Cache)
	}
}

// metricSender sends metrics with common labels.
type metricSender struct {
	out    chan<- prometheus.Metric
	labels []string // labels of all metrics: names and values in turn
}

func (m metricSender) gauge(name, help string, v float64, variable ...string) {
	m.send(prometheus.GaugeValue, name, help, v, variable)
}

func (m metricSender) counter(name, help string, v float64, variable ...string) {
	m.send(prometheus.CounterValue, name, help, v, variable)
}

// send sends a metric with the common labels and the given ones.
func (m metricSender) send(t prometheus.ValueType, name, help string, v float64, variable []string) {
	var names, values []string
	for pair := range slices.Chunk(slices.Concat(m.labels, variable), 2) {
		names, values = append(names, pair[0]), append(values, pair[1])
	}
	desc := prometheus.NewDesc("cairn_serve_"+name, help, names, nil)
	m.out <- prometheus.MustNewConstMetric(desc, t, v, values...)
}

func oneIf(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// toLabel returns a text as the value of a label, which must be UTF-8.
func toLabel(text string) string { return strings.ToValidUTF8(text, "\uFFFD") }

func (m metricSender) sendServer(s Status) {
	m.gauge("info", "Always 1; the version is in the label.", 1, "version", toLabel(s.Version))
	m.gauge("start_time_seconds", "When the server started, in seconds since 1970.", float64(s.Started.UnixMilli())/1000)
	m.gauge("exports", "Exports that clients may choose.", float64(s.Offered))
	m.gauge("connections", "Connections, including those without an export yet.", float64(s.Connections.Now))
	m.gauge("connections_limit", "Maximum number of connections.", float64(s.Connections.Limit))
	m.counter("connections_accepted_total", "Connections that have chosen an export.", float64(s.Connections.Total))
	m.counter("connections_refused_total", "Connections refused at the limit or evicted for others.", float64(s.Connections.Refused))
	m.gauge("in_flight_bytes", "Bytes of requests and replies in memory.", float64(s.InFlight.Bytes))
	m.gauge("in_flight_limit_bytes", "Maximum bytes of requests and replies in memory.", float64(s.InFlight.Limit))
	m.gauge("memory_bytes", "Bytes of chunks in memory.", float64(s.Memory.Bytes))
	m.gauge("memory_limit_bytes", "Maximum bytes of chunks in memory.", float64(s.Memory.Limit))
}

func (m metricSender) sendExport(e Export, now time.Time) {
	m.gauge("export_size_bytes", "Size of the image.", float64(e.Size))
	m.gauge("export_local_bytes", "Bytes of the image that can be read without a store, zeros included.", float64(e.Local))
	m.gauge("export_seed_bytes", "Part of export_local_bytes that only seeds may have, not verified yet.", float64(e.LocalInSeeds))
	m.gauge("export_delta_bytes", "Bytes of the image that are not local, and that a delta may make.", float64(e.InDeltas))
	m.gauge("export_clients", "Clients that use the export.", float64(e.Clients))
	m.gauge("pending_requests", "Requests in progress, without those that are answered immediately.", float64(e.Pending))
	for _, r := range e.Requests {
		m.counter("requests_total", "Requests that were answered.", float64(r.Count), "command", r.Command, "result", r.Result)
	}
	m.counter("served_bytes_total", "Bytes that clients read.", float64(e.Served))

	m.counter("reads_total", "Reads of the image that succeeded.", float64(e.Reads))
	m.counter("wanted_bytes_total", "Bytes of the reads that succeeded.", float64(e.Wanted))
	m.counter("hits_total", "Reads of the image that were answered at once.", float64(e.MemoryHits), "tier", "memory")
	m.counter("hits_total", "Reads of the image that were answered at once.", float64(e.DiskHits), "tier", "disk")
	for source, n := range map[string]int64{"store": e.FromStore, "other_image": e.FromOther, "disk": e.FromDisk, "seed": e.FromSeeds,
		"delta": e.FromDeltas} {
		m.counter("chunks_total", "Chunks that misses and prefetches brought: from a store, from a delta, from a seed, from another image's file, or from the image's own file, to be verified again.",
			float64(n), "source", source)
	}
	m.counter("seeded_bytes_total", "Bytes from seeds.", float64(e.SeedBytes))
	m.counter("delta_bytes_total", "Bytes made from deltas.", float64(e.DeltaBytes))
	m.counter("fetched_bytes_total", "Bytes from stores, decoded.", float64(e.Fetched))
	m.counter("prefetched_bytes_total", "Prefetched bytes, without filling.", float64(e.Prefetched))
	m.counter("prefetched_used_bytes_total", "Prefetched bytes that were read since. The others are wasted so far.", float64(e.Used))
	m.counter("read_failures_total", "Reads of the image that failed.", float64(e.Failures))
	m.counter("stalls_total", "Waits of reads for chunks, including unfinished ones.", float64(e.Stalls))
	m.counter("stall_seconds_total", "Total time of the finished waits of reads for chunks.", e.StallTime)
	m.gauge("stalled_reads", "Reads that wait for a chunk now.", float64(len(e.Waiting)))
	longest := 0.0
	if len(e.Waiting) > 0 {
		longest = max(0, now.Sub(e.Waiting[0].Since).Seconds())
	}
	m.gauge("longest_stall_seconds", "Longest wait of a read for a chunk now; 0 without any.", longest)
}

func (m metricSender) sendSeed(s Seed) {
	m.gauge("seed_ready", "1 if the seed is read; 0 before its content is known, and after it was found wrong.", oneIf(s.State == SeedReady))
	m.counter("seed_chunks_total", "Chunks read from the seed and found right.", float64(s.Chunks))
	m.counter("seed_read_bytes_total", "Bytes of these chunks.", float64(s.Bytes))
	m.counter("seed_wrong_chunks_total", "Chunks that the seed does not hold, although its index says so.", float64(s.Wrong))
}

func (m metricSender) sendStore(s Store) {
	m.gauge("store_up", "0 while the store is unavailable, according to its last answer.", oneIf(s.Up))
	for _, r := range s.Requests {
		m.counter("store_requests_total", "Chunks requested from the store, by result.", float64(r.Count), "result", r.Result)
	}
	m.gauge("store_in_flight_requests", "Chunk requests in flight.", float64(s.InFlight))
	m.counter("stored_bytes_total", "Bytes received from the store, as they are stored.", float64(s.Stored))
	m.counter("store_retries_total", "Requests repeated because the store was unavailable.", float64(s.Retries))
	m.gauge("store_gate_limit", "Current in-flight limit of requests to the store; 0 for a store on this machine.", float64(s.GateLimit))
}

func (m metricSender) sendCache(c Cache) {
	m.gauge("cache_bytes", "Disk space of cached images.", float64(c.Bytes))
	m.gauge("cache_limit_bytes", "Maximum disk space of cached images; -1 is no limit.", float64(c.Limit))
	m.gauge("cache_working", "1 if the cache is written; 0 for a while after a disk failure.", oneIf(c.Working))
	m.counter("cache_evicted_bytes_total", "Bytes evicted because of the limit.", float64(c.Evicted))
	m.counter("cache_dropped_chunks_total", "Chunks not kept because the disk was slow or failed.", float64(c.Dropped))
	m.counter("cache_sampled_bytes_total", "Bytes of cached images that were read and hashed again, to find damage.", float64(c.Sampled))
	m.counter("cache_damaged_chunks_total", "Chunks of cached images that were found damaged or unreadable then.", float64(c.Damaged))
}

// newRegistry returns a registry with the metrics of a Status, of the process and of Go.
func newRegistry(getStatus func() Status) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collector{getStatus}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// gatherMetrics returns all metrics in the Prometheus text format.
func gatherMetrics(r prometheus.Gatherer) ([]byte, error) {
	families, err := r.Gather()
	if err != nil {
		return nil, fmt.Errorf("gathering metrics: %w", err)
	}
	var b bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			return nil, fmt.Errorf("writing metrics: %w", err)
		}
	}
	return b.Bytes(), nil
}
