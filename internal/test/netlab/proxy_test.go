package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// newProxy returns a proxy in front of a server until the test ends.
func newProxy(t testing.TB, target string, l Link, fate func(int64) Fate) *Proxy {
	t.Helper()
	p, err := NewProxy(strings.TrimPrefix(target, "http://"), l, fate)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	return p
}

// newSource starts a server that sends as many bytes as the path says, and reads all request bodies.
func newSource(t testing.TB) string {
	t.Helper()
	zeros := make([]byte, 1<<20)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var n int
		fmt.Sscanf(r.URL.Path, "/%d", &n)
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Length", fmt.Sprint(n))
		for ; n > 0; n -= len(zeros) {
			w.Write(zeros[:min(n, len(zeros))])
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// newClient returns a client that keeps its connections until the test ends.
func newClient(t testing.TB) *http.Client {
	t.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: 100}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// fetch returns the time that n bytes took.
func fetch(t testing.TB, c *http.Client, p *Proxy, n int) time.Duration {
	t.Helper()
	begun := time.Now()
	if err := tryFetch(t.Context(), c, p, n); err != nil {
		t.Error(err)
	}
	return time.Since(begun)
}

func tryFetch(ctx context.Context, c *http.Client, p *Proxy, n int) error {
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s/%d", p.Addr(), n), nil)
	if err != nil {
		return err
	}
	answer, err := c.Do(q)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	got, err := io.Copy(io.Discard, answer.Body)
	if err == nil && got != int64(n) {
		err = fmt.Errorf("%d bytes, want %d", got, n)
	}
	return err
}

var links = map[string]Link{
	"40 ms 100 Mbit/s":  {40 * time.Millisecond, 100 * Mbit},
	"5 ms 1 Gbit/s":     {5 * time.Millisecond, Gbit},
	"20 ms 100 Mbit/s":  {20 * time.Millisecond, 100 * Mbit},
	"100 ms 5 Mbit/s":   {100 * time.Millisecond, 5 * Mbit},
	"no limit, no wait": {},
}

// again repeats a measurement for a busy machine: a correct link is at least once as fast as it should be, and
// is never too fast. It calls measure until the result is at most most, or for a limited time, and returns the
// smallest result.
func again(most time.Duration, measure func() time.Duration) time.Duration {
	best, late := time.Hour, time.Now().Add(20*time.Second)
	for best > most && time.Now().Before(late) {
		best = min(best, measure())
	}
	return best
}

// TestLatency: a small request takes one RTT, and two on a new connection.
func TestLatency(t *testing.T) {
	const slack = 5 * time.Millisecond
	for name, l := range links {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newProxy(t, newSource(t), l, nil)
			for _, c := range []struct {
				what      string
				want      time.Duration
				onceKnown bool
			}{{"the first request", 2 * l.RTT, false}, {"a further request", l.RTT, true}} {
				got := again(c.want+slack, func() time.Duration {
					client := newClient(t)
					if c.onceKnown {
						fetch(t, client, p, 10)
					}
					return fetch(t, client, p, 10)
				})
				if got < c.want-2*tick || got > c.want+slack {
					t.Errorf("%s took %v, want %v", c.what, got, c.want)
				}
			}
		})
	}
}

// TestThroughput: one connection and many connections reach the link's rate, and do not exceed it.
func TestThroughput(t *testing.T) {
	for name, l := range links {
		if l.Rate == 0 || testing.Short() && l.Rate != 100*Mbit {
			continue
		}
		for _, streams := range []int{1, 16} {
			t.Run(fmt.Sprintf("%s, %d", name, streams), func(t *testing.T) {
				p := newProxy(t, newSource(t), l, nil)
				c := newClient(t)
				size := int(l.Rate / 8 / 3) // a third of a second
				warm(t, c, p, streams)
				want := l.transferTime(size) + l.RTT
				most := want*103/100 + 2*tick
				if l.Rate > 100*Mbit { // it takes CPU time that other tests may need
					most = want * 6 / 5
				}
				best := again(most, func() time.Duration {
					took := transfer(t, c, p, streams, size/streams)
					if took < want*97/100-2*tick {
						t.Errorf("%d bytes took %v, want at least %v", size, took, want)
					}
					return took
				})
				t.Logf("%.1f %% of the link", 100*want.Seconds()/best.Seconds())
				if best > most {
					t.Errorf("%d bytes took %v, want %v", size, best, want)
				}
			})
		}
	}
}

// warm opens connections.
func warm(t *testing.T, c *http.Client, p *Proxy, streams int) {
	for range 2 { // requests of the first round may share a connection
		transfer(t, c, p, streams, 10)
	}
}

// transfer fetches each bytes on each of several connections, and returns the time of all.
func transfer(t testing.TB, c *http.Client, p *Proxy, streams, each int) time.Duration {
	begun := time.Now()
	var all sync.WaitGroup
	for range streams {
		all.Go(func() { fetch(t, c, p, each) })
	}
	all.Wait()
	return time.Since(begun)
}

// TestFair: a late connection gets its share, and a small transfer does not wait for large ones.
func TestFair(t *testing.T) {
	l := Link{10 * time.Millisecond, 40 * Mbit}
	p := newProxy(t, newSource(t), l, nil)
	c := newClient(t)
	warm(t, c, p, 8)
	const many = 4
	var others sync.WaitGroup
	for range many {
		others.Go(func() { fetch(t, c, p, 1<<20) }) // together 840 ms
	}
	for p.Counts().Requests < 16+many { // until all requests are sent
		time.Sleep(tick)
	}
	const n = 10_000
	want := l.transferTime(n*(many+1)) + l.RTT + 25*time.Millisecond
	best := time.Hour
	for range 8 { // while the other transfers continue
		best = min(best, fetch(t, c, p, n))
	}
	others.Wait()
	if best > want {
		t.Errorf("%d bytes beside %d large transfers took %v, want %v at most", n, many, best, want)
	}
}

// TestUp: the direction to the server has the same limits.
func TestUp(t *testing.T) {
	l := Link{20 * time.Millisecond, 20 * Mbit}
	p := newProxy(t, newSource(t), l, nil)
	c := newClient(t)
	fetch(t, c, p, 10)
	size := int(l.Rate / 8 / 4)
	want := l.transferTime(size) + l.RTT
	best := again(want*103/100+3*tick, func() time.Duration {
		begun := time.Now()
		answer, err := c.Post("http://"+p.Addr()+"/10", "", bytes.NewReader(make([]byte, size)))
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, answer.Body) // else the next request needs a new connection
		answer.Body.Close()
		return time.Since(begun)
	})
	if best < want*97/100 || best > want*103/100+3*tick {
		t.Errorf("%d bytes took %v, want %v", size, best, want)
	}
}

func TestCounts(t *testing.T) {
	p := newProxy(t, newSource(t), Link{}, nil)
	c := newClient(t)
	for range 3 {
		fetch(t, c, p, 100_000)
	}
	answer, err := c.Post("http://"+p.Addr()+"/0", "", strings.NewReader("GET /no HTTP/1.1\r\n\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	got := p.Counts()
	if got.Connections != 1 || got.Requests != 4 || got.Methods["GET"] != 3 || got.Methods["POST"] != 1 || got.Lost != 0 {
		t.Errorf("Counts = %+v, want 3 GET and a POST on one connection", got)
	}
	if got.Down < 300_000 || got.Down > 302_000 || got.Up < 200 || got.Up > 2000 {
		t.Errorf("Counts = %+v, want 300000 bytes down and few up, besides heads", got)
	}
}

// TestLoss: connections end according to their fate, and the others are complete.
func TestLoss(t *testing.T) {
	p := newProxy(t, newSource(t), Link{}, Every(2, Refused(), ResetAfter(5000), BlackHole()))
	var got []string
	for range 6 {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		err := tryFetch(ctx, &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, p, 1<<20)
		switch {
		case err == nil:
			got = append(got, "whole")
		case ctx.Err() != nil:
			got = append(got, "silent")
		case errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF):
			got = append(got, "reset")
		default:
			t.Error(err)
		}
		cancel()
	}
	if want := []string{"whole", "reset", "whole", "reset", "whole", "silent"}; !slices.Equal(got, want) {
		t.Errorf("connections were %v, want %v", got, want)
	}
	if c := p.Counts(); c.Lost != 3 || c.Connections != 6 {
		t.Errorf("Counts = %+v, want 3 of 6 lost", c)
	}
}

// TestResetAfter: exactly the given number of bytes arrives.
func TestResetAfter(t *testing.T) {
	p := newProxy(t, newSource(t), Link{}, Every(1, ResetAfter(12_345)))
	conn, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /1000000 HTTP/1.1\r\nHost: x\r\n\r\n")
	n, err := io.Copy(io.Discard, conn)
	if n != 12_345 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read %d bytes and %v, want 12345 and a reset", n, err)
	}
}

// TestCut: no byte moves while the link is cut, and all bytes arrive afterwards.
func TestCut(t *testing.T) {
	p := newProxy(t, newSource(t), Link{2 * time.Millisecond, 80 * Mbit}, nil)
	c := newClient(t)
	fetch(t, c, p, 10)
	done := make(chan error, 2)
	p.Cut()
	for range 2 { // on the existing connection, and on a new one
		go func() { done <- tryFetch(t.Context(), c, p, 100_000) }()
	}
	select {
	case err := <-done:
		t.Fatalf("a request ended while the link was cut: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	p.Restore()
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestSet: a running transfer becomes faster with its link.
func TestSet(t *testing.T) {
	p := newProxy(t, newSource(t), Link{time.Millisecond, 80 * Kbit}, nil)
	done := make(chan error)
	go func() { done <- tryFetch(t.Context(), newClient(t), p, 1<<20) }() // takes two minutes without Set
	for p.Counts().Down == 0 {
		time.Sleep(tick)
	}
	p.Set(Link{time.Millisecond, Gbit})
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestSever(t *testing.T) {
	p := newProxy(t, newSource(t), Link{time.Millisecond, Mbit}, nil)
	c := newClient(t)
	done := make(chan error)
	go func() { done <- tryFetch(t.Context(), c, p, 10<<20) }()
	for p.Counts().Down == 0 {
		time.Sleep(tick)
	}
	p.Sever()
	if err := <-done; err == nil {
		t.Error("a transfer survived")
	}
	fetch(t, c, p, 1000)
}

// TestHalfClose: the end of one direction does not end the other.
func TestHalfClose(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all, _ := io.ReadAll(c)
			c.Write(slices.Repeat(all, 2))
			c.Close()
		}
	}()
	p := newProxy(t, l.Addr().String(), Link{RTT: time.Millisecond}, nil)
	conn, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "twice")
	conn.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(conn); string(got) != "twicetwice" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
}

// TestCloseEndsAll: Close returns in any state of the connections, and leaves no goroutine.
func TestCloseEndsAll(t *testing.T) {
	p := newProxy(t, newSource(t), Link{time.Millisecond, Mbit}, Every(3, BlackHole()))
	c := newClient(t)
	var all sync.WaitGroup
	for range 6 {
		all.Go(func() {
			if tryFetch(t.Context(), c, p, 10<<20) == nil {
				t.Error("a transfer survived")
			}
		})
	}
	for p.Counts().Connections < 6 || p.Counts().Down == 0 {
		time.Sleep(tick)
	}
	p.Cut()
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	all.Wait()
}

// TestReaderThatStops: unread bytes do not fill the memory, and do not block other connections.
func TestReaderThatStops(t *testing.T) {
	p := newProxy(t, newSource(t), Link{}, nil)
	conn, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /200000000 HTTP/1.1\r\nHost: x\r\n\r\n")
	c := newClient(t)
	const kernel = 32 << 20 // limit of the sockets' buffers
	const head = 500        // limit of the answer to another request
	for before := int64(-2 * head); p.Counts().Down > before+head; {
		before = p.Counts().Down
		fetch(t, c, p, 0)
		time.Sleep(20 * time.Millisecond)
	}
	if got := p.Counts().Down; got > window+kernel {
		t.Errorf("%d bytes were carried to one who does not read", got)
	}
}

// BenchmarkProxy measures the CPU time of a full link for a second, including its client and its server.
func BenchmarkProxy(b *testing.B) {
	l := links["5 ms 1 Gbit/s"]
	p := newProxy(b, newSource(b), l, nil)
	c := newClient(b)
	size := int(l.Rate / 8)
	before := cpuTime(b)
	for b.Loop() {
		transfer(b, c, p, 8, size/8)
	}
	b.SetBytes(int64(size))
	b.ReportMetric((cpuTime(b)-before).Seconds()/float64(b.N), "cpu-s/op")
}

func cpuTime(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
