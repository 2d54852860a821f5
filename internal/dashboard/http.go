package dashboard

import (
	"bytes"
	"context"
	_ "embed" // the parts of the page
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
)

// Limits of the server. Whoever keeps a connection and does not go on is let go, and when there are too many the one
// that has been there longest goes first: whoever asks a question and takes the answer has long gone by then.
const (
	maxConns     = 64 // of each listener
	maxHeader    = 8 << 10
	readTimeout  = 5 * time.Second
	writeTimeout = 10 * time.Second
	idleTimeout  = 30 * time.Second
	fresh        = 250 * time.Millisecond // for which an answer is good, whoever asks
	maxLooks     = 4                      // whose answers are in memory at a time
	sampleEvery  = time.Second
	sampleCount  = 6 // over which rates are
)

var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageCSS []byte
	//go:embed page.js
	pageJS []byte
)

// policy is what the page may do: be shown, with what is on the same address, and nothing else.
const policy = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// Totals is what rates are made of. All grow.
type Totals struct{ Requests, Served, Stored int64 }

// Board answers over HTTP how things are. Safe for concurrent use.
type Board struct {
	look     func() Status
	totals   func() Totals
	registry *prometheus.Registry

	mu      sync.Mutex // guards what follows; held while things are looked at
	at      time.Time  // of status
	status  Status
	answers map[string][]byte // made of status, by path
	looks   int
	taking  map[int]int // how many clients are taking answers, by the look that those are from
	samples []sample    // the oldest first
}

type sample struct {
	at time.Time
	Totals
}

// New is a board for what look says. It is asked at most a few times a second, however many want to know, and never by
// two at once; totals is asked once a second, and should cost little. Rates are the board's own.
func New(look func() Status, totals func() Totals) *Board {
	b := &Board{look: look, totals: totals, answers: make(map[string][]byte), taking: make(map[int]int)}
	b.registry = newRegistry(func() Status { return b.status })
	return b
}

// Serve answers on all listeners until ctx ends or one of them fails, and closes them. When ctx ends it returns nil.
func (b *Board) Serve(ctx context.Context, listeners ...net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go b.sample(ctx)
	public := slices.ContainsFunc(listeners, func(l net.Listener) bool {
		tcp, is := l.Addr().(*net.TCPAddr)
		return !is || !tcp.IP.IsLoopback()
	})
	server := &http.Server{
		Handler:           b.handler(!public),
		ReadHeaderTimeout: readTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          log.New(io.Discard, "", 0), // strangers fill no log
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	var group errgroup.Group
	for _, l := range listeners {
		group.Go(func() error {
			err := server.Serve(&crowd{Listener: l, most: maxConns})
			if errors.Is(err, http.ErrServerClosed) {
				return nil
			}
			cancel() // and with it the others
			return err
		})
	}
	return group.Wait()
}

// sample remembers the totals of the last seconds.
func (b *Board) sample(ctx context.Context) {
	ticker := time.NewTicker(sampleEvery)
	defer ticker.Stop()
	for {
		b.note(sample{time.Now(), b.totals()})
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (b *Board) note(s sample) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.samples = append(b.samples, s)
	b.samples = slices.Delete(b.samples, 0, max(0, len(b.samples)-sampleCount))
}

// rates are those of the last seconds. The caller holds mu.
func (b *Board) rates() Rates {
	if len(b.samples) < 2 {
		return Rates{}
	}
	from, to := b.samples[0], b.samples[len(b.samples)-1]
	seconds := max(to.at.Sub(from.at).Seconds(), 0.001)
	per := func(a, b int64) float64 { return float64(max(0, b-a)) / seconds }
	return Rates{per(from.Requests, to.Requests), per(from.Served, to.Served), per(from.Stored, to.Stored)}
}

// handler answers. On this machine's own address only requests for a host of that kind are answered: others come from
// a browser that a foreign page has led here under its own name.
func (b *Board) handler(loopback bool) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", b.page("text/html; charset=utf-8", render))
	mux.HandleFunc("GET /status.json", b.page("application/json", toJSON))
	mux.HandleFunc("GET /metrics", b.page(string(expfmt.NewFormat(expfmt.TypeTextPlain)), func(Status) ([]byte, error) { return text(b.registry) }))
	mux.HandleFunc("GET /page.css", fixed("text/css; charset=utf-8", pageCSS))
	mux.HandleFunc("GET /page.js", fixed("text/javascript; charset=utf-8", pageJS))
	mux.HandleFunc("GET /favicon.ico", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		if loopback && !localHost(r.Host) {
			http.Error(w, "this address is for this machine's own names", http.StatusForbidden)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func localHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return host == "localhost" || net.ParseIP(host) != nil || len(host) > 2 && net.ParseIP(host[1:len(host)-1]) != nil
}

func fixed(kind string, text []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", kind)
		_, _ = w.Write(text) // a client that has gone wants nothing
	}
}

// page answers with what is made of the status, once for all who ask at about the same time: they share its bytes.
func (b *Board) page(kind string, write func(Status) ([]byte, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		text, done, err := b.answer(r.URL.Path, write)
		defer done()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fixed(kind, text)(w, r)
	}
}

// answer returns what is made of the status. The caller calls done when the client has it, or has gone. As long as
// clients are slow to take the answers of many looks, nothing is looked at anew: or they would fill the memory.
func (b *Board) answer(path string, write func(Status) ([]byte, error)) (text []byte, done func(), err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if now := time.Now(); now.Sub(b.at) >= fresh && len(b.taking) < maxLooks {
		b.status = b.look()
		b.status.Now, b.status.Rates = time.Now(), b.rates()
		b.at = now
		b.looks++
		clear(b.answers)
	}
	look := b.looks
	b.taking[look]++
	done = func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.taking[look]--; b.taking[look] == 0 {
			delete(b.taking, look)
		}
	}
	if text := b.answers[path]; text != nil {
		return text, done, nil
	}
	text, err = write(b.status)
	if err == nil {
		b.answers[path] = text
	}
	return text, done, err
}

func toJSON(s Status) ([]byte, error) {
	var buffer bytes.Buffer
	e := json.NewEncoder(&buffer)
	e.SetIndent("", " ")
	err := e.Encode(s)
	return buffer.Bytes(), err
}

// crowd is a listener with few connections at a time: a newcomer takes the place of the oldest.
type crowd struct {
	net.Listener
	most int

	mu    sync.Mutex // guards what follows
	conns []*member  // the oldest first
}

type member struct {
	net.Conn
	crowd *crowd
}

// Accept implements net.Listener.
func (c *crowd) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	m := &member{conn, c}
	if oldest := c.enter(m); oldest != nil {
		_ = oldest.Conn.Close()
	}
	return m, nil
}

func (c *crowd) enter(m *member) (oldest *member) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.conns) >= c.most {
		oldest = c.conns[0]
		c.conns = slices.Delete(c.conns, 0, 1)
	}
	c.conns = append(c.conns, m)
	return oldest
}

// Close leaves the crowd.
func (m *member) Close() error {
	m.crowd.mu.Lock()
	if i := slices.Index(m.crowd.conns, m); i >= 0 {
		m.crowd.conns = slices.Delete(m.crowd.conns, i, i+1)
	}
	m.crowd.mu.Unlock()
	return m.Conn.Close()
}
