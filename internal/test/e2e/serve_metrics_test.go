package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"cairn/internal/test/browsertest"
	"cairn/nbd/nbdtest"
)

// seen is the part of the output of cairn status --json that the tests check.
type seen struct {
	Exports []struct {
		Name     string `json:"name"`
		Identity string `json:"identity"`
		Size     int64  `json:"size_bytes"`
		Local    int64  `json:"local_bytes"`
		Map      string `json:"map"`
		Clients  int    `json:"clients"`
		Served   int64  `json:"served_bytes"`
		Reads    int64  `json:"reads"`
		Wanted   int64  `json:"wanted_bytes"`
		Memory   int64  `json:"memory_hits"`
		Disk     int64  `json:"disk_hits"`
		Store    int64  `json:"store_chunks"`
		Waiting  []stuck
		Requests []struct {
			Command string `json:"command"`
			Result  string `json:"result"`
			Count   int64  `json:"count"`
		} `json:"requests"`
	} `json:"exports"`
	Clients []struct {
		Export  string `json:"export"`
		Pending []struct {
			Offset int64  `json:"offset"`
			Wait   *stuck `json:"wait"`
		} `json:"pending"`
	} `json:"clients"`
	Stores []struct {
		Name     string `json:"name"`
		Up       bool   `json:"up"`
		InFlight int64  `json:"in_flight_requests"`
		Stored   int64  `json:"stored_bytes"`
		Retries  int64  `json:"retries"`
	} `json:"stores"`
}

// stuck is a chunk with waiters.
type stuck struct {
	Chunk  string `json:"chunk"`
	Offset int64  `json:"offset"`
	Size   int64  `json:"size_bytes"`
	Error  string `json:"error"`
}

// look repeats a request for the status until want accepts it.
func look(t testing.TB, at, what string, want func(seen) bool) (s seen) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		s = seen{}
		parse(t, cairn(t, "status", at, "--json"), &s)
		if want(s) {
			return s
		}
	}
	t.Fatalf("%s: not in time; the status is %+v", what, s)
	return s
}

// metricsOf returns the metrics at a web address, summed over labels.
func metricsOf(t testing.TB, base string) map[string]float64 {
	t.Helper()
	time.Sleep(300 * time.Millisecond) // the server caches an answer for a moment
	answer, err := http.Get(base + "metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]float64)
	for name, f := range families {
		for _, m := range f.Metric {
			all[strings.TrimPrefix(name, "cairn_serve_")] += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return all
}

// webOf returns the address of a server's page, as it has printed it.
func webOf(t testing.TB, s *serving) string {
	t.Helper()
	s.stderr.await(t, "metrics and status: ")
	at := regexp.MustCompile(`metrics and status: (http://\S+/)\n`).FindStringSubmatch(s.stderr.await(t, "/\n"))
	if at == nil {
		t.Fatal("the server does not say where its metrics are")
	}
	return at[1]
}

// namedClient connects an NBD client to an export.
func namedClient(t testing.TB, socket, name string) *nbdtest.Client {
	t.Helper()
	c, err := nbdtest.Dial(t.Context(), "unix", socket)
	if err == nil {
		err = c.StructuredReplies()
	}
	if err == nil {
		_, err = c.Go(name)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// settled returns a server's metrics, and the traffic of a web server, when no chunk is being fetched.
func settled(t testing.TB, base string, web *webServer) (m map[string]float64, sent traffic) {
	t.Helper()
	for range 20 {
		before := metricsOf(t, base)
		news := web.sent(t)
		sent.chunks, sent.bytes = sent.chunks+news.chunks, sent.bytes+news.bytes
		if m = metricsOf(t, base); m["chunks_total"] == before["chunks_total"] && m["store_in_flight_requests"] == 0 {
			return m, sent
		}
	}
	t.Error("chunks are fetched on and on")
	return m, sent
}

// nasty is the name of an export with special characters of HTML, metrics and terminals.
const nasty = "<img src=x onerror=alert(1)>\"'{}\\ \x1b[31m"

// TestMetricsAreTrue: after a session through a real web server the counters agree with the client and the web
// server, for any name of the export.
func TestMetricsAreTrue(t *testing.T) {
	t.Parallel()
	dir, image := publishedNoise(t, 8<<20)
	if err := os.Rename(filepath.Join(dir, "v.caibx"), filepath.Join(dir, nasty+".caibx")); err != nil {
		t.Fatal(err)
	}
	web := newNginx(t, dir)
	socket := filepath.Join(socketDir(t), "s")
	s := serve(t, 1, filepath.Join(dir, nasty+".caibx"), "-s", web.url+"/default.castr", "--cache", filepath.Join(t.TempDir(), "cache"),
		"--prefetch", "none", "--listen", "unix:"+socket, "--metrics", "tcp:127.0.0.1:0")
	base := webOf(t, s)
	c := namedClient(t, socket, nasty)
	offsets := []int{0, 3 << 20, 7 << 20}
	session := func() {
		t.Helper()
		for i, off := range offsets {
			if !read(t, c, image, off, 1000*(i+1)) {
				t.Errorf("the read at %d fails", off)
			}
		}
	}
	session()
	idle := func(s seen) bool { return len(s.Stores) == 1 && s.Stores[0].InFlight == 0 }
	before := look(t, base, "the first reads", idle).Exports[0]
	session()
	if _, err := c.Do(t.Context(), nbdtest.Request{Command: nbdtest.CmdRead, Offset: 8 << 20, Length: 1}); err == nil {
		t.Error("a read beyond the end succeeds")
	}
	status := look(t, base, "all reads", func(s seen) bool { return idle(s) && s.Exports[0].Reads == 6 && s.Exports[0].Clients == 1 })
	e := status.Exports[0]
	if hits := e.Memory + e.Disk - before.Memory - before.Disk; hits != 3 || e.Name != strings.ToValidUTF8(nasty, "") {
		t.Errorf("%d hits of %q, want the 3 reads that were repeated", hits, e.Name)
	}
	if before.Memory+before.Disk > 2 {
		t.Errorf("%d of the first reads were hits, though nothing was there", before.Memory+before.Disk)
	}
	got, sent := settled(t, base, web)
	for name, want := range map[string]float64{
		"requests_total": 7, "reads_total": 6, "served_bytes_total": 12_000, "wanted_bytes_total": 12_000, "stalled_reads": 0,
		"hits_total": float64(e.Memory + e.Disk), "store_requests_total": got["chunks_total"], "store_up": 1, "store_retries_total": 0, "export_clients": 1, "exports": 1,
		"connections": 1, "connections_accepted_total": 1, "export_size_bytes": 8 << 20, "read_failures_total": 0,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
	// A request with a slow answer is sent twice, and one of the two is wasted.
	switch chunks, bytes := int(got["chunks_total"]), int64(got["stored_bytes_total"]); {
	case chunks == 0 || chunks > sent.chunks || sent.chunks > chunks+chunks/10+2:
		t.Errorf("%d chunks came, and nginx has sent %d", chunks, sent.chunks)
	case bytes > sent.bytes || chunks == sent.chunks && bytes != sent.bytes:
		t.Errorf("%d bytes came, and nginx has sent %d", bytes, sent.bytes)
	}
	if int64(got["export_local_bytes"]) < int64(got["fetched_bytes_total"]) {
		t.Errorf("%v bytes are local, and %v were fetched", got["export_local_bytes"], got["fetched_bytes_total"])
	}
	refused := slices.ContainsFunc(e.Requests, func(r struct {
		Command string `json:"command"`
		Result  string `json:"result"`
		Count   int64  `json:"count"`
	}) bool {
		return r.Command == "read" && r.Result == "refused" && r.Count == 1
	})
	if !refused {
		t.Errorf("the requests are %+v, want one refused", e.Requests)
	}
	if out := cairn(t, "status", base); strings.Contains(out, "\x1b") || !strings.Contains(out, "<img src=x") {
		t.Errorf("cairn status prints %q", out)
	}
	if page := body(t, base); strings.Contains(page, "<img") || !strings.Contains(page, "&lt;img src=x") {
		t.Errorf("the page has the name as it is:\n%s", page)
	}
	checkFailed(t, run(t, "cairn", "status", web.url), notFound, "not a status of cairn serve", nil)
}

func body(t testing.TB, url string) string {
	t.Helper()
	answer, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestStallIsSeen: while a store is silent, the status shows which client waits for which chunk, and afterwards
// how long it waited.
func TestStallIsSeen(t *testing.T) {
	t.Parallel()
	dir, image := publishedNoise(t, 4<<20)
	silent := newGate(t, newNginx(t, dir).url, 0)
	run := socketDir(t)
	socket, at := filepath.Join(run, "s"), "unix:"+filepath.Join(run, "m")
	serve(t, 1, filepath.Join(dir, "v.caibx"), "-s", silent.url+"/default.castr", "--prefetch", "none", "--listen", "unix:"+socket, "--metrics", at)
	c := namedClient(t, socket, "v")
	const offset = 2 << 20
	answered := make(chan bool)
	go func() { answered <- read(t, c, image, offset, 100) }()
	silent.await(t)
	s := look(t, at, "the stall", func(s seen) bool {
		return len(s.Exports) == 1 && len(s.Exports[0].Waiting) == 1 && len(s.Clients[0].Pending) == 1
	})
	var info struct {
		List []struct {
			Offset int64  `json:"offset"`
			Size   int64  `json:"size"`
			Digest string `json:"digest"`
		} `json:"list"`
	}
	parse(t, cairn(t, "info", "--json", "--chunks", filepath.Join(dir, "v.caibx")), &info)
	i := slices.IndexFunc(info.List, func(c struct {
		Offset int64  `json:"offset"`
		Size   int64  `json:"size"`
		Digest string `json:"digest"`
	}) bool {
		return c.Offset+c.Size > offset
	})
	want := stuck{Chunk: info.List[i].Digest, Offset: info.List[i].Offset, Size: info.List[i].Size}
	if got := s.Exports[0].Waiting[0]; got != want {
		t.Errorf("the export waits for %+v, want %+v", got, want)
	}
	if p := s.Clients[0].Pending[0]; p.Wait == nil || *p.Wait != want || p.Offset != offset || s.Clients[0].Export != "v" {
		t.Errorf("the client waits for %+v, want %+v", p.Wait, want)
	}
	if out := cairn(t, "status", at); !strings.Contains(out, want.Chunk) || !strings.Contains(out, "no answer yet") {
		t.Errorf("cairn status does not say what is waited for:\n%s", out)
	}
	silent.open()
	if !<-answered {
		t.Error("the read fails")
	}
	look(t, at, "the end of the stall", func(s seen) bool { return len(s.Exports[0].Waiting) == 0 && len(s.Clients[0].Pending) == 0 })
}

// TestOutageIsSeen: an unavailable store is down, with the reason, retries are counted, and it is up again
// afterwards.
func TestOutageIsSeen(t *testing.T) {
	t.Parallel()
	dir, image := publishedNoise(t, 1<<20)
	o := newOrigin(t, dir)
	run := socketDir(t)
	socket, at := filepath.Join(run, "s"), "unix:"+filepath.Join(run, "m")
	serve(t, 1, filepath.Join(dir, "v.caibx"), "-s", o.URL+"/default.castr", "--prefetch", "none", "--listen", "unix:"+socket, "--metrics", at)
	c := namedClient(t, socket, "v")
	o.away.Store(true)
	answered := make(chan bool)
	go func() { answered <- read(t, c, image, 0, 100) }()
	s := look(t, at, "the outage", func(s seen) bool {
		return len(s.Stores) == 1 && !s.Stores[0].Up && s.Stores[0].Retries > 0 && len(s.Exports[0].Waiting) == 1 && s.Exports[0].Waiting[0].Error != ""
	})
	if why := s.Exports[0].Waiting[0].Error; !strings.Contains(why, "503") {
		t.Errorf("the read waits because of %q, want the server's 503", why)
	}
	if out := cairn(t, "status", at); !strings.Contains(out, "unavailable for ") {
		t.Errorf("cairn status does not say that the store is away:\n%s", out)
	}
	o.away.Store(false)
	if !<-answered {
		t.Error("the read fails though the store is back")
	}
	look(t, at, "the store's return", func(s seen) bool { return s.Stores[0].Up && len(s.Exports[0].Waiting) == 0 })
}

// TestMetricsOfWatched: the counters of a replaced image continue under its name, and an address for other
// machines gives a warning.
func TestMetricsOfWatched(t *testing.T) {
	t.Parallel()
	dir, image := publishedNoise(t, 1<<20)
	watched := t.TempDir()
	put := func() {
		t.Helper()
		index := readFile(t, filepath.Join(dir, "v.caibx"))
		tmp := writeFile(t, watched, "new", index)
		if err := os.Rename(tmp, filepath.Join(watched, "v.caibx")); err != nil {
			t.Fatal(err)
		}
	}
	put()
	socket := filepath.Join(socketDir(t), "s")
	s := serve(t, 1, "--watch", watched, "-s", filepath.Join(dir, "default.castr"), "--listen", "unix:"+socket, "--metrics", "tcp:0.0.0.0:0")
	s.stderr.await(t, "has no authentication")
	_, port, _ := strings.Cut(strings.TrimSuffix(webOf(t, s), "/"), "//0.0.0.0:")
	at := "tcp:127.0.0.1:" + port
	look(t, at, "nothing", func(s seen) bool { return len(s.Exports) == 0 })
	c := namedClient(t, socket, "v")
	if !read(t, c, image, 0, 5000) {
		t.Fatal("a read fails")
	}
	look(t, at, "the read", func(s seen) bool { return len(s.Exports) == 1 && s.Exports[0].Reads == 1 })
	_ = c.Disconnect()

	other, image := publishedNoise(t, 2<<20)
	cairn(t, "make", filepath.Join(dir, "v.caibx"), writeFile(t, other, "image2", image[:1<<20+4096]), "--compression-level", "1")
	put()
	c = namedClient(t, socket, "v")
	if !read(t, c, image, 0, 700) {
		t.Fatal("a read of the new image fails")
	}
	last := look(t, at, "both images' reads", func(s seen) bool {
		return len(s.Exports) == 1 && s.Exports[0].Reads == 2 && s.Exports[0].Size == 1<<20+4096
	})
	if e := last.Exports[0]; e.Wanted != 5700 || e.Served != 5700 {
		t.Errorf("%d bytes were wanted and %d served, want 5700", e.Wanted, e.Served)
	}
}

// TestStatusPageIsAlive: in a browser, the map of the image changes when a chunk is read over NBD.
func TestStatusPageIsAlive(t *testing.T) {
	t.Parallel()
	tab := browsertest.Start(t).Tab(t)
	dir, image := publishedNoise(t, 8<<20)
	web := newNginx(t, dir)
	socket := filepath.Join(socketDir(t), "s")
	s := serve(t, 1, web.url+"/v.caibx", "--prefetch", "none", "--listen", "unix:"+socket, "--metrics", "tcp:127.0.0.1:0")
	base := webOf(t, s)
	const cells = `document.querySelector("#export-0 svg").dataset.cells`
	tab.Run(chromedp.Navigate(base))
	first := browsertest.Ask[string](tab, cells)
	if strings.Trim(first, "0") != "" {
		t.Fatalf("before the first read the map is %q", first)
	}
	c := namedClient(t, socket, "v")
	const offset, length = 4 << 20, 512 << 10
	if !read(t, c, image, offset, length) {
		t.Fatal("the read fails")
	}
	from, to := offset*len(first)/len(image)+1, (offset+length)*len(first)/len(image)-1
	changed := fmt.Sprintf(`/^a+$/.test(%s.slice(%d, %d)) && document.querySelectorAll("#clients tbody tr").length === 1
		&& document.querySelector("#export-0 .ca") !== null`, cells, from, to)
	tab.Run(chromedp.Poll(changed, nil))
	tab.Picture("alive.png")
}
