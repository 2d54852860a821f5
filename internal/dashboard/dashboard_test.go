package dashboard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// hostileText has characters with a meaning in HTML, scripts, Prometheus and terminals.
const hostileText = `</script><img src=x onerror=alert(1)>"'{}\` + "\n\x1b[31m\u202e\xff"

// sampleStatus returns a status in which no part is empty.
func sampleStatus() Status {
	now := time.Now()
	wait := Wait{Chunk: strings.Repeat("ab", 32), Offset: 300 << 20, Size: 700 << 10, Since: now.Add(-12 * time.Second)}
	failing := Wait{Chunk: strings.Repeat("cd", 32), Offset: 500 << 20, Size: 64 << 10, Since: now.Add(-3 * time.Second),
		Error: "GET https://images.example.com/default.castr/cdcd/cdcd.cacnk: 503 Service Unavailable"}
	cells := strings.Repeat("a", 200) + "0123456789a" + strings.Repeat("0", 289) + strings.Repeat("3", 60) + strings.Repeat("0a", 100) + strings.Repeat("0", 200)
	requests := []Requests{{"read", "ok", 41234}, {"read", "failed", 2}, {"block_status", "ok", 4}}
	v2 := Export{Name: "debian-13", Identity: "debian-13@" + strings.Repeat("0f", 32), Size: 960 << 20, Local: 330 << 20, Map: cells, Clients: 3,
		Requests: requests, Served: 3 << 30, Pending: 2, Reads: 41230, Wanted: 3 << 30, MemoryHits: 30000, DiskHits: 9000,
		LocalInSeeds: 100 << 20, SeedMap: strings.Repeat("0", 100) + strings.Repeat("a", 100) + strings.Repeat("05", 380),
		FromSeeds: 900, SeedBytes: 60 << 20, FromDeltas: 70, DeltaBytes: 5 << 20, InDeltas: 30 << 20,
		FromStore: 5100, FromOther: 800, FromDisk: 12, Fetched: 320 << 20, Prefetched: 200 << 20, Used: 170 << 20,
		Failures: 2, Stalls: 2300, StallTime: 75.3, Waiting: []Wait{wait, failing}}
	return Status{
		Version: "v1.2.3", Started: now.Add(-26 * time.Hour), Now: now, Offered: 3,
		Exports: []Export{v2, {Name: "rescue", Identity: "rescue@" + strings.Repeat("1e", 32), Size: 40 << 20, Local: 40 << 20, Map: strings.Repeat("a", 960)}},
		Clients: []Client{
			{ID: 1, Address: "192.0.2.17:51234", Export: "debian-13", TLS: true, Since: now.Add(-time.Hour), Requests: 40000, Served: 2 << 30,
				Pending: []Pending{{"read", 300 << 20, 128 << 10, now.Add(-12 * time.Second), &wait}, {"read", 301 << 20, 4096, now.Add(-time.Second), nil}}},
			{ID: 7, Address: "[2001:db8::12]:40022", Export: "debian-13", Since: now.Add(-90 * time.Second), Requests: 1240, Served: 1 << 30},
		},
		Connections: Connections{3, 128, 9, 0}, InFlight: Usage{2 << 20, 512 << 20}, Memory: Usage{250 << 20, 256 << 20},
		Cache: &Cache{Bytes: 700 << 20, Limit: 2 << 30, Evicted: 90 << 20, Working: true},
		Seeds: []Seed{
			{Name: "PARTLABEL=root-a", State: SeedReady, Size: 2 << 30, Chunks: 900, Bytes: 60 << 20, Wrong: 3},
			{Name: "/srv/old.img", State: SeedFailed, Error: "read /srv/old.img: input/output error", Size: 1 << 30},
		},
		Stores: []Store{
			{Name: "https://images.example.com/default.castr", Up: false, Since: now.Add(-4 * time.Second), Error: failing.Error,
				Requests: []Results{{"ok", 5100}, {"unavailable", 7}}, InFlight: 2, Stored: 150 << 20, Retries: 5, GateLimit: 24},
			{Name: "/var/lib/images/default.castr", Up: true, Requests: []Results{{"ok", 12}}, Stored: 1 << 20},
		},
		Rates: Rates{812, 34 << 20, 3 << 20},
	}
}

// hostileStatus returns a status with hostileText in all names. The names of exports, and of stores,
// differ only in the last character.
func hostileStatus() Status {
	s := sampleStatus()
	s.Version = hostileText
	for i := range s.Exports {
		s.Exports[i].Name, s.Exports[i].Identity = fmt.Sprint(hostileText, i), hostileText
		for j := range s.Exports[i].Waiting {
			s.Exports[i].Waiting[j].Error, s.Exports[i].Waiting[j].Chunk = hostileText, hostileText
		}
	}
	for i := range s.Clients {
		s.Clients[i].Address, s.Clients[i].Export = hostileText, hostileText
	}
	for i := range s.Seeds {
		s.Seeds[i].Name, s.Seeds[i].Error = fmt.Sprint(hostileText, i), hostileText
	}
	for i := range s.Stores {
		s.Stores[i].Name, s.Stores[i].Error = fmt.Sprint(hostileText, i), hostileText
	}
	return s
}

// startBoard serves a status until the test ends, and returns its address.
func startBoard(t testing.TB, getStatus func() Status) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- New(getStatus, func() Totals { return Totals{} }).Serve(ctx, MaxConns, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return "http://" + l.Addr().String() + "/"
}

func getText(t testing.TB, url string) (string, http.Header) {
	t.Helper()
	answer, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v\n%s", url, answer.Status, err, text)
	}
	return string(text), answer.Header
}

// TestLint: Prometheus's linter accepts the metrics, whatever the names are.
func TestLint(t *testing.T) {
	for name, s := range map[string]Status{"sample": sampleStatus(), "hostile": hostileStatus(), "empty": {}} {
		problems, err := testutil.GatherAndLint(newRegistry(func() Status { return s }))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, p := range problems {
			if strings.HasPrefix(p.Metric, "cairn_") {
				t.Errorf("%s: %s: %s", name, p.Metric, p.Text)
			}
		}
	}
}

// TestMetrics: the metrics have the values of the status, and can be parsed with hostile names.
func TestMetrics(t *testing.T) {
	s := hostileStatus()
	text, header := getText(t, startBoard(t, func() Status { return s })+"metrics")
	if kind := header.Get("Content-Type"); !strings.HasPrefix(kind, "text/plain; version=0.0.4") {
		t.Errorf("the content type is %q", kind)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for name, f := range families {
		for _, m := range f.Metric {
			got[name] += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	for name, want := range map[string]float64{
		"requests_total": 41240, "served_bytes_total": 3 << 30, "hits_total": 39000, "chunks_total": 6882, "seed_chunks_total": 900, "seed_ready": 1, "seeded_bytes_total": 60 << 20, "delta_bytes_total": 5 << 20, "export_delta_bytes": 30 << 20, "stalled_reads": 2,
		"store_up": 1, "store_requests_total": 5119, "stored_bytes_total": 151 << 20, "cache_evicted_bytes_total": 90 << 20,
		"export_local_bytes": 370 << 20, "stall_seconds_total": 75.3, "connections": 3, "exports": 3, "store_gate_limit": 24,
	} {
		if got["cairn_serve_"+name] != want {
			t.Errorf("%s is %v, want %v", name, got["cairn_serve_"+name], want)
		}
	}
	if longest := got["cairn_serve_longest_stall_seconds"]; longest < 12 || longest > 600 {
		t.Errorf("the longest stall is %v s, want some 12", longest)
	}
	if _, ok := families["process_resident_memory_bytes"]; !ok {
		t.Error("the process's own metrics are missing")
	}
}

// TestDocumented: docs/serve.md names each metric, and no others.
func TestDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/serve.md")
	if err != nil {
		t.Fatal(err)
	}
	text, _ := getText(t, startBoard(t, sampleStatus)+"metrics")
	names := func(text string) []string {
		all := regexp.MustCompile(`cairn_serve_[a-z_]+[a-z]`).FindAllString(text, -1)
		slices.Sort(all)
		return slices.Compact(all)
	}
	if diff := cmp.Diff(names(text), names(string(doc))); diff != "" {
		t.Errorf("metrics of the server (-), and in docs/serve.md (+):\n%s", diff)
	}
}

// TestFewSeries: the number of series is bounded for any number of exports and seeds.
func TestFewSeries(t *testing.T) {
	s := sampleStatus()
	for i := range 5000 {
		e := s.Exports[0]
		e.Name = fmt.Sprint("e", i)
		s.Exports = append(s.Exports, e)
		s.Seeds = append(s.Seeds, Seed{Name: fmt.Sprint("s", i)})
	}
	n, err := testutil.GatherAndCount(newRegistry(func() Status { return s }))
	if most := 32*maxExports + 4*maxSeeds; err != nil || n > most {
		t.Errorf("%d series, %v, want at most %d", n, err, most)
	}
	page, _ := getText(t, startBoard(t, func() Status { return s }))
	if len(page) > 2<<20 || !strings.Contains(page, "more, in status.json") {
		t.Errorf("the page has %d bytes", len(page))
	}
}

func TestJSON(t *testing.T) {
	s := sampleStatus()
	text, _ := getText(t, startBoard(t, func() Status { return s })+"status.json")
	var got Status
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s.Exports[1].Map, got.Exports[1].Map); diff != "" || got.Stores[0].Error != s.Stores[0].Error || got.Clients[0].Pending[0].Wait.Chunk != s.Exports[0].Waiting[0].Chunk {
		t.Errorf("the JSON has another status: %s\n%s", diff, text)
	}
}

// TestHostile: names cannot leave their place in the page, and the policy allows the page only its
// own resources.
func TestHostile(t *testing.T) {
	page, header := getText(t, startBoard(t, hostileStatus))
	for _, bad := range []string{"<img", "</script><", "\x1b", "\u202e", "onerror=alert(1)>\""} {
		if strings.Contains(page, bad) {
			t.Errorf("the page contains %q", bad)
		}
	}
	if n := strings.Count(page, "&lt;img src=x"); n < 10 {
		t.Errorf("the names are shown %d times", n)
	}
	if got := header.Get("Content-Security-Policy"); got != contentPolicy || strings.Contains(got, "unsafe") {
		t.Errorf("the policy is %q", got)
	}
	if strings.Contains(page, "style=") || strings.Contains(page, "<script>") || strings.Contains(page, "://") && strings.Contains(page, "src=\"http") {
		t.Error("the page has inline script or style, or requests other addresses")
	}
}

// TestHosts: on a loopback address, requests for other host names are refused, so that DNS
// rebinding does not work.
func TestHosts(t *testing.T) {
	at := startBoard(t, sampleStatus)
	for host, want := range map[string]int{"": 200, "localhost:1": 200, "127.0.0.1": 200, "[::1]:9": 200, "evil.example": 403, "evil.example:80": 403} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, at+"status.json", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != want {
			t.Errorf("host %q: %s, want %d", host, answer.Status, want)
		}
	}
	for _, method := range []string{http.MethodPost, http.MethodDelete} {
		r, _ := http.NewRequestWithContext(t.Context(), method, at, nil)
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("%s: %s", method, answer.Status)
		}
	}
}

func TestMap(t *testing.T) {
	runs := func(parts ...int64) func(func(int64, bool) bool) { // negative: not local
		return func(yield func(int64, bool) bool) {
			for _, n := range parts {
				if !yield(max(n, -n), n > 0) {
					return
				}
			}
		}
	}
	for _, c := range []struct {
		size  int64
		parts []int64
		cells string
		local int64
	}{
		{0, nil, "", 0},
		{1, []int64{1}, "a", 1},
		{4096 * 3, []int64{4096, -4096, 4096}, "a0a", 8192},
		{10_000, []int64{5000, -5000}, "a40", 5000},
		{8192, []int64{8191, -1}, "a9", 8191},
	} {
		cells, local := Map(c.size, runs(c.parts...))
		if cells != c.cells || local != c.local {
			t.Errorf("Map(%d, %d) = %q, %d, want %q, %d", c.size, c.parts, cells, local, c.cells, c.local)
		}
	}
	const large = 1 << 50
	if cells, local := Map(large, runs(large/2, -large/2)); len(cells) > Cells || local != large/2 || !strings.HasPrefix(cells, "aaaa") || !strings.HasSuffix(cells, "000") {
		t.Errorf("Map of 1 PiB is %q, %d", cells, local)
	}
}

func TestRates(t *testing.T) {
	b := New(sampleStatus, func() Totals { return Totals{} })
	if got := b.ratesLocked(); got != (Rates{}) {
		t.Errorf("without samples: %+v", got)
	}
	began := time.Unix(100, 0)
	for i := range 20 {
		b.addSample(sample{began.Add(time.Duration(i) * time.Second), Totals{Requests: int64(i) * 10, Served: int64(i) * 1000}})
	}
	if got, want := b.ratesLocked(), (Rates{Requests: 10, Served: 1000}); got != want || len(b.samples) != sampleCount {
		t.Errorf("rates are %+v of %d samples, want %+v of %d", got, len(b.samples), want, sampleCount)
	}
}

// TestSlowScrapers: a thousand clients that send no request or receive no response cost little
// memory and block no other client. Concurrent requests share one status.
func TestSlowScrapers(t *testing.T) {
	var mu sync.Mutex
	calls := 0
	s := sampleStatus()
	for i := range 200 {
		e := s.Exports[0]
		e.Name = fmt.Sprint("e", i)
		s.Exports = append(s.Exports, e)
	}
	at := startBoard(t, func() Status {
		mu.Lock()
		defer mu.Unlock()
		calls++
		return s
	})
	getText(t, at+"metrics")
	before := liveHeap()
	host := strings.TrimSuffix(strings.TrimPrefix(at, "http://"), "/")
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for i := range 1000 {
		c, err := net.Dial("tcp", host)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
		if i%100 == 0 {
			time.Sleep(statusMaxAge) // so that the next requests need a new status
		}
		if i%2 == 0 {
			fmt.Fprintf(c, "GET /metrics HTTP/1.1\r\nHost: %s\r\n\r\n", host)
		} else {
			fmt.Fprintf(c, "GET /metrics HTTP/1.1\r\nX-Slow: ")
		}
	}
	for range 3 {
		if text, _ := getText(t, at+"metrics"); !strings.Contains(text, "cairn_serve_info") {
			t.Error("a scrape has no metrics")
		}
	}
	if grown := liveHeap() - before; grown > 16<<20 {
		t.Errorf("memory has grown by %d KiB", grown>>10)
	} else {
		t.Logf("memory has grown by %d KiB", grown>>10)
	}
	open := func() (n int) {
		for _, c := range conns {
			if !isClosed(c) {
				n++
			}
		}
		return n
	}
	n := open()
	for end := time.Now().Add(20 * time.Second); n > MaxConns && time.Now().Before(end); n = open() {
		time.Sleep(50 * time.Millisecond) // the server may still be about to close some
	}
	if n > MaxConns {
		t.Errorf("%d slow connections are open, want at most %d", n, MaxConns)
	}
	mu.Lock()
	defer mu.Unlock()
	if calls > 100 {
		t.Errorf("getStatus was called %d times", calls)
	}
}

// pipeListener is a listener whose connections are pipes.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{} }

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) dial() net.Conn {
	ours, theirs := net.Pipe()
	l.conns <- theirs
	return ours
}

// TestServerLimits: a client has a time to send its request and a time to receive the response. A large header is
// refused.
func TestServerLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
		ctx, stop := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- New(sampleStatus, func() Totals { return Totals{} }).Serve(ctx, MaxConns, l) }()

		c, start := l.dial(), time.Now()
		fmt.Fprint(c, "GET /metrics HTTP/1.1\r\nHost: a\r\n")
		_, _ = io.Copy(io.Discard, c)
		if took := time.Since(start); took != readTimeout {
			t.Errorf("a client that does not finish its request is disconnected after %v, want %v", took, readTimeout)
		}

		c = l.dial()
		fmt.Fprint(c, "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
		time.Sleep(writeTimeout)
		synctest.Wait()
		if n, err := io.Copy(io.Discard, c); n > 0 || err != nil {
			t.Errorf("a client that does not receive for %v gets %d bytes, %v, want none", writeTimeout, n, err)
		}

		c = l.dial()
		go fmt.Fprint(c, "GET /metrics HTTP/1.1\r\nHost: a\r\nX: ", strings.Repeat("x", maxHeader+4096), "\r\n\r\n")
		if answer, err := io.ReadAll(c); !strings.HasPrefix(string(answer), "HTTP/1.1 431 ") {
			t.Errorf("the answer to a large header is %.100q, %v, want status 431", answer, err)
		}
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

// isClosed reports whether the other side has closed a connection. It discards received bytes.
func isClosed(c net.Conn) bool {
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	_, err := io.Copy(io.Discard, c)
	return err == nil || !errors.Is(err, os.ErrDeadlineExceeded)
}

// liveHeap returns the bytes of memory in use after a garbage collection.
func liveHeap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// TestCrowd: a connection beyond the limit closes the oldest one.
func TestCrowd(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &limitedListener{Listener: l, limit: 2}
	defer c.Close()
	var ours, theirs []net.Conn
	for range 3 {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		accepted, err := c.Accept()
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs = append(ours, accepted), append(theirs, conn)
	}
	if !isClosed(theirs[0]) || isClosed(theirs[1]) || isClosed(theirs[2]) {
		t.Error("another connection than the oldest is closed")
	}
	_ = ours[0].Close()
	_ = ours[1].Close()
	if len(c.conns) != 1 {
		t.Errorf("%d connections are in the listener, want 1", len(c.conns))
	}
}
