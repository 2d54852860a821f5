package e2e

import (
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cairn/internal/test/need"
	"cairn/internal/test/netlab"
	"cairn/testimages"
)

// faultSeed returns the seed of this run's faults. CAIRN_SEED repeats those of an earlier run.
func faultSeed(t testing.TB) uint64 {
	t.Helper()
	n := rand.Uint64N(1e9)
	if text := os.Getenv("CAIRN_SEED"); text != "" {
		var err error
		if n, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("CAIRN_SEED: %v", err)
		}
	}
	t.Logf("CAIRN_SEED=%d gives these faults again", n)
	return n
}

// finely publishes an image of about that many small chunks as release b, and another image as a.
func finely(t testing.TB, chunks int) release {
	t.Helper()
	dir := t.TempDir()
	b := testimages.Random(11, chunks*4096)
	a := slices.Clone(b)
	a[len(a)/2]++
	r := release{pair{a: writeFile(t, dir, "a", a), b: writeFile(t, dir, "b", b)}, t.TempDir()}
	for name, image := range map[string]string{"a": r.a, "b": r.b} {
		cairn(t, "make", "--chunk-size", "2:4:8", "--compression-level", "1", r.index(name), image)
	}
	return r
}

// faultyServer is a web server of a release that fails.
type faultyServer struct {
	*netlab.Faulty
	url string
}

func newFaultyServer(t testing.TB, r release, f netlab.Faults) *faultyServer {
	t.Helper()
	return newFaultyBefore(t, http.FileServer(http.Dir(r.dir)), f)
}

// newFaultyBefore starts a faulty server in front of a correct handler.
func newFaultyBefore(t testing.TB, inner http.Handler, f netlab.Faults) *faultyServer {
	t.Helper()
	s := &faultyServer{Faulty: netlab.NewFaulty(inner, f)}
	server := httptest.NewUnstartedServer(s)
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // clients that close connections are expected
	server.Start()
	t.Cleanup(func() { s.Close(); server.Close() })
	s.url = server.URL
	return s
}

func (s *faultyServer) index() string { return s.url + "/b.caibx" }
func (s *faultyServer) store() string { return s.url + "/default.castr" }

func isChunk(q *http.Request) bool { return strings.HasSuffix(q.URL.Path, ".cacnk") }
func isIndex(q *http.Request) bool { return strings.HasSuffix(q.URL.Path, ".caibx") }

// The faults by their remedy.
var (
	// a retry
	passing = []netlab.Fault{netlab.ServerError, netlab.Burst, netlab.Throttled, netlab.ThrottledDate, netlab.ResetEarly,
		netlab.ResetMidBody, netlab.Truncated, netlab.LongLength, netlab.BadChunked, netlab.WebPage}
	// a retry, after the patience for a connection
	sluggish = []netlab.Fault{netlab.SlowHeader, netlab.SlowBody, netlab.Silent}
	// one retry, if its bytes are right
	wrong = []netlab.Fault{netlab.ShortLength, netlab.BitFlip, netlab.OtherBytes, netlab.Zeros, netlab.Disguised}
	// another store
	believed = []netlab.Fault{netlab.Denied, netlab.Missing}
)

// statuses returns the exit statuses when every chunk always fails.
func statuses() map[netlab.Fault]int {
	all := map[netlab.Fault]int{netlab.Denied: notFound, netlab.Missing: notFound}
	for _, k := range passing {
		all[k] = notFound
	}
	for _, k := range wrong {
		all[k] = damaged
	}
	return all
}

// reading are the commands that read a store. Each of them gets the image and checks it.
var reading = map[string]func(t testing.TB, r release, index string, args ...string) ran{
	"assemble": func(t testing.TB, r release, index string, args ...string) ran {
		return imageOf(t, r, func(out string) ran { return run(t, "cairn", append([]string{"assemble", index, out}, args...)...) })
	},
	"cat": func(t testing.TB, r release, index string, args ...string) ran {
		got := run(t, "cairn", append([]string{"cat", index}, args...)...)
		want := string(readFile(t, r.b))
		if !strings.HasPrefix(want, got.stdout) || got.status == 0 && got.stdout != want {
			t.Errorf("cat wrote %d bytes, and not the image's, with status %d", len(got.stdout), got.status)
		}
		return got
	},
	"verify": func(t testing.TB, _ release, index string, args ...string) ran {
		return run(t, "cairn", append([]string{"verify", index}, args...)...)
	},
}

// imageOf runs a command that writes the image into a file. The file must be complete or absent.
func imageOf(t testing.TB, r release, make func(out string) ran) ran {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	got := make(out)
	if got.status == 0 {
		wantSame(t, out, r.b)
	} else {
		wantNone(t, out)
	}
	return got
}

// wantHealed checks that a command got the image. It ignores messages about bytes after an answer.
func wantHealed(t testing.TB, what string, got ran) {
	t.Helper()
	if got.status != 0 {
		t.Errorf("%s: exit status %d\n%.2000s", what, got.status, got.stderr)
	}
	if strings.Contains(got.stderr, "Unsolicited") {
		t.Errorf("%s: stderr has what a server sent:\n%.500s", what, got.stderr)
	}
}

// TestNetFaults: while one request in five fails, each command gets the right bytes: from one store with
// temporary faults, and from two stores with all kinds of faults.
func TestNetFaults(t *testing.T) {
	t.Parallel()
	seed, r := faultSeed(t), finely(t, 800)
	var total atomic.Int64
	var all sync.WaitGroup
	for name, read := range reading {
		all.Go(func() {
			one := newFaultyServer(t, r, netlab.Of(seed, 0.2, passing...))
			wantHealed(t, name, read(t, r, one.index()))
			bad := newFaultyServer(t, r, netlab.Of(seed+1, 0.2, slices.Concat(passing, wrong, believed)...))
			second := newFaultyServer(t, r, netlab.Of(seed+2, 0.05, passing...))
			wantHealed(t, name+" with a second store", read(t, r, second.index(), "-s", bad.store()+"|"+second.store()))
			total.Add(one.Total() + bad.Total() + second.Total())
		})
	}
	all.Wait()
	t.Logf("%d faults", total.Load())
	if total.Load() < 500 {
		t.Errorf("%d faults were injected, want 500 at least", total.Load())
	}
}

// TestNetFaultsServe: clients of cairn serve see no fault.
func TestNetFaultsServe(t *testing.T) {
	t.Parallel()
	need.Tool(t, "nbdcopy")
	seed, r := faultSeed(t), finely(t, 800)
	bad := newFaultyServer(t, r, netlab.Of(seed, 0.2, slices.Concat(passing, wrong, believed)...))
	second := newFaultyServer(t, r, netlab.Of(seed+1, 0.2, passing...))
	uri := serve(t, 1, second.index(), "-s", bad.store()+"|"+second.store()).uris[0]
	useNBDCopy(t, uri, r)
	one := newFaultyServer(t, r, netlab.Of(seed, 0.2, passing...))
	useNBDCopy(t, serve(t, 1, one.index()).uris[0], r)
	t.Logf("%d faults", bad.Total()+second.Total()+one.Total())
	if one.Total() < 100 {
		t.Errorf("%d faults were injected, want 100 at least", one.Total())
	}
}

// TestNetFaultStatus: each permanent fault ends a job in time, with the exit status for its kind.
func TestNetFaultStatus(t *testing.T) {
	t.Parallel()
	r := finely(t, 40)
	var all sync.WaitGroup
	for kind, want := range statuses() {
		all.Go(func() { wantStatus(t, r, kind, want, time.Minute) }) // a busy machine needs most of it
	}
	all.Wait()
}

// TestNetSilentStore: a store without answers, or with extremely slow ones, ends a job too. The first failure
// takes the 30 s that a connection is given.
func TestNetSilentStore(t *testing.T) {
	t.Parallel()
	r := finely(t, 40)
	var all sync.WaitGroup
	for _, kind := range sluggish {
		all.Go(func() { wantStatus(t, r, kind, notFound, 90*time.Second) })
	}
	all.Wait()
}

func wantStatus(t *testing.T, r release, kind netlab.Fault, want int, limit time.Duration) {
	f := netlab.Of(1, 1, kind)
	f.Only, f.Drip = isChunk, time.Second
	s := newFaultyServer(t, r, f)
	begun := time.Now()
	got := reading["assemble"](t, r, s.index(), "--patience", "2s")
	if got.status != want || !strings.Contains(got.stderr, "cairn: error: ") || !strings.Contains(got.stderr, s.url) {
		t.Errorf("%v: exit status %d, want %d and the store named\n%s", kind, got.status, want, got.stderr)
	}
	if took := time.Since(begun); took > limit {
		t.Errorf("%v: it took %v, want %v at most", kind, took, limit)
	}
}

// TestNetFaultsSluggish: requests to slow servers are repeated, and another store gets them soon.
func TestNetFaultsSluggish(t *testing.T) {
	t.Parallel()
	r := finely(t, 40)
	var all sync.WaitGroup
	for _, kind := range sluggish {
		f := netlab.Of(1, 1, kind)
		f.Only, f.Drip = isChunk, time.Second
		all.Go(func() {
			few := f
			few.First, few.Rate = 1, 0.2
			wantHealed(t, kind.String(), reading["assemble"](t, r, newFaultyServer(t, r, few).index()))
		})
		all.Go(func() {
			bad, good := newFaultyServer(t, r, f), newFaultyServer(t, r, netlab.Faults{})
			wantHealed(t, kind.String()+" with a second store",
				reading["assemble"](t, r, good.index(), "-s", bad.store()+"|"+good.store()))
		})
	}
	all.Wait()
}

// TestNetFaultyIndex: the results of a job whose index fails once.
func TestNetFaultyIndex(t *testing.T) {
	t.Parallel()
	r := finely(t, 40)
	want := map[netlab.Fault][]int{netlab.Denied: {notFound}, netlab.Missing: {notFound},
		// Bytes that are not an index are read once more. Changed bytes may be the index of another image,
		// since it has no checksum: a digest without a chunk, sizes that fit no chunk, or no visible change.
		netlab.Zeros: {0}, netlab.ShortLength: {0}, netlab.Disguised: {0}, netlab.OtherBytes: {0},
		netlab.BitFlip: {0, damaged, notFound}}
	for _, k := range passing {
		want[k] = []int{0}
	}
	seed := faultSeed(t)
	var all sync.WaitGroup
	for kind, statuses := range want {
		all.Go(func() {
			f := netlab.Of(seed, 1, kind)
			f.First, f.Length = 1, 1
			f.Only = isIndex
			s := newFaultyServer(t, r, f)
			if kind == netlab.OtherBytes { // the bytes of a chunk
				cairn(t, "cat", r.index("b"), "-s", s.store(), "--length", "1")
			}
			if got := reading["assemble"](t, r, s.index()); !slices.Contains(statuses, got.status) {
				t.Errorf("%v: exit status %d, want one of %v\n%s", kind, got.status, statuses, got.stderr)
			}
		})
	}
	all.Wait()
}

// TestNetStaleIndex: an index of yesterday gives the complete image of yesterday.
func TestNetStaleIndex(t *testing.T) {
	t.Parallel()
	r := finely(t, 40)
	f := netlab.Of(1, 1, netlab.Stale)
	f.Stale = func(path string) string { return strings.Replace(path, "/b.caibx", "/a.caibx", 1) }
	f.Only = isIndex
	out := filepath.Join(t.TempDir(), "out")
	cairn(t, "assemble", newFaultyServer(t, r, f).index(), out)
	wantSame(t, out, r.a)
}

// newLink starts a proxy in front of a server.
func newLink(t testing.TB, url string, l netlab.Link, fate func(int64) netlab.Fate) (p *netlab.Proxy, through string) {
	t.Helper()
	p, err := netlab.NewProxy(strings.TrimPrefix(url, "http://"), l, fate)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p, "http://" + p.Addr()
}

// TestNetLostConnections: with 100 ms and 5 Mbit/s, every seventh connection is refused, reset in the middle of
// a body, or gets no answer.
func TestNetLostConnections(t *testing.T) {
	t.Parallel()
	r := finely(t, 400) // 1.6 MB take 2.6 s
	lost := netlab.Every(7, netlab.Refused(), netlab.ResetAfter(20_000), netlab.BlackHole())
	p, url := newLink(t, newNginx(t, r.dir).url, netlab.Link{RTT: 100 * time.Millisecond, Rate: 5 * netlab.Mbit}, lost)
	wantHealed(t, "assemble", reading["assemble"](t, r, url+"/b.caibx", "--fetches", "32"))
	t.Logf("%+v", p.Counts())
	if p.Counts().Lost == 0 {
		t.Error("no connection was lost")
	}
}

// TestNetOutage: an interruption of the link only delays a job. A permanent outage ends it after its patience.
func TestNetOutage(t *testing.T) {
	t.Parallel()
	r := finely(t, 400)
	nginx := newNginx(t, r.dir)
	l := netlab.Link{RTT: 10 * time.Millisecond, Rate: 5 * netlab.Mbit}
	t.Run("short", func(t *testing.T) {
		p, url := newLink(t, nginx.url, l, nil)
		wantHealed(t, "assemble", imageOf(t, r, func(out string) ran {
			j := start(t, nil, "assemble", url+"/b.caibx", out)
			downTo(t, p, 300_000)
			p.Sever()
			p.Cut()
			time.Sleep(3 * time.Second)
			p.Restore()
			return j.wait(t)
		}))
	})
	t.Run("long", func(t *testing.T) {
		p, url := newLink(t, nginx.url, l, nil)
		got := imageOf(t, r, func(out string) ran {
			j := start(t, nil, "assemble", url+"/b.caibx", out, "--patience", "2s")
			downTo(t, p, 300_000)
			if err := p.Close(); err != nil {
				t.Error(err)
			}
			return j.wait(t)
		})
		checkFailed(t, got, notFound, url, []string{"assemble"})
	})
	t.Run("serve", func(t *testing.T) {
		p, url := newLink(t, nginx.url, l, nil)
		uri := serve(t, 1, url+"/b.caibx").uris[0]
		done := make(chan struct{})
		go func() {
			downTo(t, p, 300_000)
			p.Sever()
			p.Cut()
			time.Sleep(3 * time.Second)
			p.Restore()
			close(done)
		}()
		useNBDCopy(t, uri, r)
		<-done
	})
}

// downTo returns when a link has sent n bytes to the client.
func downTo(t testing.TB, p *netlab.Proxy, n int64) {
	t.Helper()
	late := time.Now().Add(patience)
	for p.Counts().Down < n {
		if time.Now().After(late) {
			t.Error(fmt.Errorf("%d bytes did not come in time", n))
			return
		}
		time.Sleep(time.Millisecond)
	}
}
