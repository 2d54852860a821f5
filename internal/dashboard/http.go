package dashboard

import (
	"bytes"
	"context"
	_ "embed" // for the files of the page
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"golang.org/x/sync/errgroup"

	"cairn/internal/plaintext"
)

// MaxConns limits the connections of a Board.
const MaxConns = 64

// Limits of the server. Slow connections time out. When there are too many, the oldest one is
// closed first, because a client that sends requests and receives responses has finished long
// before.
const (
	maxHeader      = 8 << 10
	readTimeout    = 5 * time.Second
	writeTimeout   = 10 * time.Second
	idleTimeout    = 30 * time.Second
	statusMaxAge   = 250 * time.Millisecond // how long responses use the same status
	maxGenerations = 4                      // statuses whose responses are in memory
	sampleInterval = time.Second
	sampleCount    = 6 // samples over which rates are computed
)

var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageCSS []byte
	//go:embed page.js
	pageJS []byte
)

// contentPolicy allows the page its style, its script and connections to its own address, and
// nothing else.
const contentPolicy = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// Totals are the counters from which rates are computed.
type Totals struct{ Requests, Served, Stored int64 }

// Board serves the status over HTTP. It is safe for concurrent use.
type Board struct {
	getStatus func() Status
	totals    func() Totals
	registry  *prometheus.Registry

	mu         sync.Mutex // guards the fields below; held while getStatus runs
	at         time.Time  // time of status
	status     Status
	rendered   map[string][]byte // responses with status, by path
	generation int
	readers    map[int]int // number of clients that receive responses, by the generation of the status
	samples    []sample    // oldest first
}

type sample struct {
	at time.Time
	Totals
}

// New returns a board that serves the results of getStatus. It calls getStatus at most four times a
// second, never concurrently, and only for requests. It calls totals once a second, which should be
// cheap. It computes Status.Now and Status.Rates itself.
func New(getStatus func() Status, totals func() Totals) *Board {
	b := &Board{getStatus: getStatus, totals: totals, rendered: make(map[string][]byte), readers: make(map[int]int)}
	b.registry = newRegistry(func() Status { return b.status })
	return b
}

// Serve serves HTTP on all listeners until ctx ends or one of them fails. It closes the listeners.
// When ctx ends it returns nil. It divides conns, which is at most MaxConns, among the listeners; each
// has one connection at least.
func (b *Board) Serve(ctx context.Context, conns int, listeners ...net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go b.recordSamples(ctx)
	public := slices.ContainsFunc(listeners, func(l net.Listener) bool {
		tcp, is := l.Addr().(*net.TCPAddr)
		return !is || !tcp.IP.IsLoopback()
	})
	server := &http.Server{
		Handler:           b.newHandler(!public),
		ReadHeaderTimeout: readTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          log.New(io.Discard, "", 0), // any client could fill the log
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	var group errgroup.Group
	for _, l := range listeners {
		group.Go(func() error {
			err := server.Serve(&limitedListener{Listener: l, limit: max(min(conns, MaxConns)/len(listeners), 1)})
			if errors.Is(err, http.ErrServerClosed) {
				return nil
			}
			cancel() // which closes the other listeners
			return err
		})
	}
	return group.Wait()
}

// recordSamples records the totals every second until ctx ends.
func (b *Board) recordSamples(ctx context.Context) {
	ticker := time.NewTicker(sampleInterval)
	defer ticker.Stop()
	for {
		b.addSample(sample{time.Now(), b.totals()})
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (b *Board) addSample(s sample) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.samples = append(b.samples, s)
	b.samples = slices.Delete(b.samples, 0, max(0, len(b.samples)-sampleCount))
}

// ratesLocked returns the rates over the recorded samples. The caller holds mu.
func (b *Board) ratesLocked() Rates {
	if len(b.samples) < 2 {
		return Rates{}
	}
	from, to := b.samples[0], b.samples[len(b.samples)-1]
	seconds := max(to.at.Sub(from.at).Seconds(), 0.001)
	per := func(a, b int64) float64 { return float64(max(0, b-a)) / seconds }
	return Rates{per(from.Requests, to.Requests), per(from.Served, to.Served), per(from.Stored, to.Stored)}
}

// newHandler returns the HTTP handler. With loopback, which means that all listeners are on loopback
// addresses, it refuses requests for host names other than localhost. Such requests come from a web
// page that has its own name resolve to this address (DNS rebinding).
func (b *Board) newHandler(loopback bool) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", b.serveRendered("text/html; charset=utf-8", renderPage))
	mux.HandleFunc("GET /status.json", b.serveRendered("application/json", encodeJSON))
	mux.HandleFunc("GET /metrics", b.serveRendered(string(expfmt.NewFormat(expfmt.TypeTextPlain)), func(Status) ([]byte, error) { return gatherMetrics(b.registry) }))
	mux.HandleFunc("GET /page.css", serveStatic("text/css; charset=utf-8", pageCSS))
	mux.HandleFunc("GET /page.js", serveStatic("text/javascript; charset=utf-8", pageJS))
	mux.HandleFunc("GET /favicon.ico", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", contentPolicy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		if loopback && !isLocalhostOrIP(r.Host) {
			http.Error(w, "use localhost or an IP address as the host name", http.StatusForbidden)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// isLocalhostOrIP reports whether a Host header is localhost or any IP address. A web page cannot
// have these names resolve to another address.
func isLocalhostOrIP(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return host == "localhost" || net.ParseIP(host) != nil || len(host) > 2 && net.ParseIP(host[1:len(host)-1]) != nil
}

func serveStatic(kind string, text []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", kind)
		_, _ = w.Write(text) // an error means that the client is gone
	}
}

// serveRendered serves the result of write for the status. Requests at about the same time share
// one result.
func (b *Board) serveRendered(kind string, write func(Status) ([]byte, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		text, done, err := b.renderShared(r.URL.Path, write)
		defer done()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		serveStatic(kind, text)(w, r)
	}
}

// renderShared returns the result of write for the status, and may share it between requests. The
// caller calls done when it has sent the result. While clients still receive results of
// maxGenerations statuses, it does not get a new status, to limit memory.
func (b *Board) renderShared(path string, write func(Status) ([]byte, error)) (text []byte, done func(), err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if now := time.Now(); now.Sub(b.at) >= statusMaxAge && len(b.readers) < maxGenerations {
		b.status = b.getStatus()
		b.status.Now, b.status.Rates = time.Now(), b.ratesLocked()
		b.at = now
		b.generation++
		clear(b.rendered)
	}
	generation := b.generation
	b.readers[generation]++
	done = func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.readers[generation]--; b.readers[generation] == 0 {
			delete(b.readers, generation)
		}
	}
	if text := b.rendered[path]; text != nil {
		return text, done, nil
	}
	text, err = write(b.status)
	if err == nil {
		b.rendered[path] = text
	}
	return text, done, err
}

func encodeJSON(s Status) ([]byte, error) {
	var buffer bytes.Buffer
	e := json.NewEncoder(&buffer)
	e.SetIndent("", " ")
	err := e.Encode(s)
	return plaintext.EscapeJSON(buffer.Bytes()), err
}

// limitedListener is a listener with a limit for open connections. A new connection closes the
// oldest one.
type limitedListener struct {
	net.Listener
	limit int

	mu    sync.Mutex     // guards the field below
	conns []*limitedConn // oldest first
}

type limitedConn struct {
	net.Conn
	listener *limitedListener
}

// Accept implements net.Listener.
func (c *limitedListener) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	m := &limitedConn{conn, c}
	if oldest := c.addConn(m); oldest != nil {
		_ = oldest.Conn.Close()
	}
	return m, nil
}

func (c *limitedListener) addConn(m *limitedConn) (oldest *limitedConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.conns) >= c.limit {
		oldest = c.conns[0]
		c.conns = slices.Delete(c.conns, 0, 1)
	}
	c.conns = append(c.conns, m)
	return oldest
}

// Close closes the connection and removes it from the listener.
func (m *limitedConn) Close() error {
	m.listener.mu.Lock()
	if i := slices.Index(m.listener.conns, m); i >= 0 {
		m.listener.conns = slices.Delete(m.listener.conns, i, i+1)
	}
	m.listener.mu.Unlock()
	return m.Conn.Close()
}
