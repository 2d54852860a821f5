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

// maxExports is how many exports are told of one by one, and so how many series there can be.
const maxExports = 256

// collector tells Prometheus of a Status. It is unchecked, since which series there are depends on what happens.
type collector struct{ look func() Status }

var _ prometheus.Collector = collector{}

// Describe says nothing, as prometheus.Collector wants of collectors that are unchecked.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	s := c.look()
	all := series{out: out}
	all.server(s)
	for _, e := range s.Exports[:min(len(s.Exports), maxExports)] {
		series{out, []string{"export", label(e.Name)}}.export(e, s.Now)
	}
	for _, st := range s.Stores {
		series{out, []string{"store", label(st.Name)}}.store(st)
	}
	if s.Cache != nil {
		all.cache(*s.Cache)
	}
}

// series makes metrics.
type series struct {
	out    chan<- prometheus.Metric
	labels []string // of all metrics, each a name and a value
}

func (m series) gauge(name, help string, v float64, variable ...string) {
	m.put(prometheus.GaugeValue, name, help, v, variable)
}

func (m series) counter(name, help string, v float64, variable ...string) {
	m.put(prometheus.CounterValue, name, help, v, variable)
}

// put sends a metric with the series' labels and others.
func (m series) put(t prometheus.ValueType, name, help string, v float64, variable []string) {
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

// label is any text as the value of a label, which must be UTF-8.
func label(text string) string { return strings.ToValidUTF8(text, "\uFFFD") }

func (m series) server(s Status) {
	m.gauge("info", "Always 1; the version is in the label.", 1, "version", label(s.Version))
	m.gauge("start_time_seconds", "When the server began, in seconds since 1970.", float64(s.Started.UnixMilli())/1000)
	m.gauge("exports", "Exports that clients may choose.", float64(s.Offered))
	m.gauge("connections", "Connections, those included that have not chosen an export yet.", float64(s.Connections.Now))
	m.gauge("connections_limit", "Connections that are allowed at a time.", float64(s.Connections.Limit))
	m.counter("connections_accepted_total", "Connections that have chosen an export.", float64(s.Connections.Total))
	m.counter("connections_refused_total", "Connections that there was no place for.", float64(s.Connections.Refused))
	m.gauge("in_flight_bytes", "Requests and replies that are in memory.", float64(s.InFlight.Bytes))
	m.gauge("in_flight_limit_bytes", "Requests and replies that may be in memory.", float64(s.InFlight.Limit))
	m.gauge("memory_bytes", "Chunks that are kept in memory.", float64(s.Memory.Bytes))
	m.gauge("memory_limit_bytes", "Chunks that may be kept in memory.", float64(s.Memory.Limit))
}

func (m series) export(e Export, now time.Time) {
	m.gauge("export_size_bytes", "Size of the image.", float64(e.Size))
	m.gauge("export_local_bytes", "Bytes of the image that a read has without a store, zeros included.", float64(e.Local))
	m.gauge("export_clients", "Clients that use the export.", float64(e.Clients))
	m.gauge("pending_requests", "Requests that are being worked on, those apart that are answered at once.", float64(e.Pending))
	for _, r := range e.Requests {
		m.counter("requests_total", "Requests that were answered.", float64(r.Count), "command", r.Command, "result", r.Result)
	}
	m.counter("served_bytes_total", "Bytes that clients read with success.", float64(e.Served))

	m.counter("reads_total", "Reads of the image that succeeded.", float64(e.Reads))
	m.counter("wanted_bytes_total", "Bytes that those reads wanted.", float64(e.Wanted))
	m.counter("hits_total", "Reads of the image that were answered at once.", float64(e.MemoryHits), "tier", "memory")
	m.counter("hits_total", "Reads of the image that were answered at once.", float64(e.DiskHits), "tier", "disk")
	for source, n := range map[string]int64{"store": e.FromStore, "other_image": e.FromOther, "disk": e.FromDisk} {
		m.counter("chunks_total", "Chunks that were brought: from a store, from another image's file, or from the image's own file to be proven anew.",
			float64(n), "source", source)
	}
	m.counter("fetched_bytes_total", "Bytes that came from stores, decoded.", float64(e.Fetched))
	m.counter("prefetched_bytes_total", "Bytes that were fetched before they were asked for, filling apart.", float64(e.Prefetched))
	m.counter("prefetched_used_bytes_total", "Of those, the ones that were read since; the others are wasted so far.", float64(e.Used))
	m.waits(e, now)
}

func (m series) waits(e Export, now time.Time) {
	m.counter("read_failures_total", "Reads of the image that failed.", float64(e.Failures))
	m.counter("stalls_total", "Times that a read had to wait for a chunk.", float64(e.Stalls))
	m.counter("stall_seconds_total", "Time that reads waited for chunks, of all reads together, when the waiting was over.", e.StallTime)
	m.gauge("stalled_reads", "Reads that wait for a chunk now.", float64(len(e.Waiting)))
	longest := 0.0
	if len(e.Waiting) > 0 {
		longest = max(0, now.Sub(e.Waiting[0].Since).Seconds())
	}
	m.gauge("longest_stall_seconds", "For how long the read has waited that waits longest now; 0 if none does.", longest)
}

func (m series) store(s Store) {
	m.gauge("store_up", "1 if the store answered the last request, or was not asked yet; 0 if it was unavailable.", oneIf(s.Up))
	for _, r := range s.Requests {
		m.counter("store_requests_total", "Chunks that the store was asked for, by what came of it.", float64(r.Count), "result", r.Result)
	}
	m.gauge("store_in_flight_requests", "Chunks that the store is being asked for.", float64(s.InFlight))
	m.counter("stored_bytes_total", "Bytes that came from the store, as they are stored: what went over the wire.", float64(s.Stored))
	m.counter("store_retries_total", "Requests that were made once more, since the store was unavailable and somebody waits.", float64(s.Retries))
	m.gauge("store_gate_limit", "Requests that are let in to the store at once at present; 0 for a store on this machine.", float64(s.GateLimit))
}

func (m series) cache(c Cache) {
	m.gauge("cache_bytes", "Disk space that cached images take.", float64(c.Bytes))
	m.gauge("cache_limit_bytes", "Disk space that cached images may take; -1 is no limit.", float64(c.Limit))
	m.gauge("cache_working", "1 if the cache is written; 0 for a while after its disk has failed.", oneIf(c.Working))
	m.counter("cache_evicted_bytes_total", "Bytes that were removed to keep to the limit.", float64(c.Evicted))
	m.counter("cache_dropped_chunks_total", "Chunks that were not kept since the disk was slow or failed.", float64(c.Dropped))
}

// newRegistry has the metrics of a Status, and those of the process and of Go.
func newRegistry(look func() Status) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collector{look}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// text is all metrics in the format that every Prometheus reads.
func text(r prometheus.Gatherer) ([]byte, error) {
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
