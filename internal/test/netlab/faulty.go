package netlab

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Faulty is a web server that hands on to another, and fails. Safe for concurrent use.
type Faulty struct {
	inner http.Handler
	done  chan struct{} // closed when nobody is kept waiting any more

	mu       sync.Mutex // guards what follows
	faults   Faults
	asked    map[string]int // how often for each object
	lasting  Fault          // what becomes of the next
	left     int            // so many requests
	previous answer         // to another request than the one that it is compared with
	of       string         // the object that previous is
	requests int64
	counts   map[Fault]int64
}

// NewFaulty fails before a server of static files or anything else whose answers are not large.
func NewFaulty(inner http.Handler, f Faults) *Faulty {
	return &Faulty{inner: inner, faults: f, done: make(chan struct{}), asked: map[string]int{}, counts: map[Fault]int64{}}
}

// Set changes how it fails from now on; what was asked before is forgotten.
func (s *Faulty) Set(f Faults) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults, s.left = f, 0
	clear(s.asked)
}

// Counts are the faults so far, by kind, without what was honest.
func (s *Faulty) Counts() map[Fault]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.counts)
}

// Total is how many faults there were.
func (s *Faulty) Total() (n int64) {
	for _, k := range s.Counts() {
		n += k
	}
	return n
}

// Requests is how many were made, honest answers included.
func (s *Faulty) Requests() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests
}

// Close lets go who is kept waiting. It is called once.
func (s *Faulty) Close() { close(s.done) }

// ServeHTTP implements http.Handler.
func (s *Faulty) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	f, kind, chance := s.decide(r)
	honest := s.honest(r, body, kind, f)
	kind, other := s.settle(r, kind, honest)
	e := &exchange{w: w, r: r, faults: f, chance: chance, honest: honest, other: other, done: s.done}
	e.answer(kind)
}

// decide draws what becomes of a request.
func (s *Faulty) decide(r *http.Request) (Faults, Fault, *rand.Rand) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests++
	object := r.Method + " " + r.URL.Path
	s.asked[object]++
	chance := s.faults.chance(object, s.asked[object])
	switch {
	case s.faults.Only != nil && !s.faults.Only(r):
		return s.faults, Honest, chance
	case s.faults.First > 0 && s.asked[object] > s.faults.First:
		return s.faults, Honest, chance
	case s.left > 0:
		s.left--
		return s.faults, s.lasting, chance
	}
	kind := s.faults.draw(chance)
	if n := s.faults.lasts(kind); n > 1 {
		s.lasting, s.left = kind, n-1
	}
	return s.faults, kind, chance
}

// honest is the right answer, or what was right before. A request to write is carried out if that can be told
// from the answer's being lost only.
func (s *Faulty) honest(r *http.Request, body []byte, kind Fault, f Faults) *answer {
	if isWrite(r) && kind.refuses() {
		return &answer{status: http.StatusOK}
	}
	again := r.Clone(r.Context())
	again.Body = io.NopCloser(bytes.NewReader(body))
	if before := f.before(r.URL.Path); kind == Stale && before != "" {
		again.URL.Path, again.URL.RawPath = before, ""
	}
	a := &answer{header: http.Header{}, status: http.StatusOK}
	s.inner.ServeHTTP(a, again)
	return a
}

func (f Faults) before(path string) string {
	if f.Stale == nil {
		return ""
	}
	return f.Stale(path)
}

// settle counts the fault, if it can be one here, and remembers the answer for OtherBytes.
func (s *Faulty) settle(r *http.Request, kind Fault, honest *answer) (Fault, answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	other := s.previous
	switch {
	case !kind.applies(r, honest),
		kind == OtherBytes && (other.body == nil || s.of == r.URL.Path),
		kind == Stale && s.faults.before(r.URL.Path) == "":
		kind = Honest
	}
	if kind != Honest {
		s.counts[kind]++
	}
	if r.Method == http.MethodGet && honest.status == http.StatusOK && s.of != r.URL.Path {
		s.previous, s.of = *honest, r.URL.Path
	}
	return kind, other
}

// answer is what a server says, kept.
type answer struct {
	header http.Header
	status int
	body   []byte
}

func (a *answer) Header() http.Header    { return a.header }
func (a *answer) WriteHeader(status int) { a.status = status }
func (a *answer) Write(p []byte) (int, error) {
	a.body = append(a.body, p...)
	return len(p), nil
}

// exchange is a request under way.
type exchange struct {
	w      http.ResponseWriter
	r      *http.Request
	faults Faults
	chance *rand.Rand
	honest *answer
	other  answer
	done   <-chan struct{}
}

// answer answers with a fault.
func (e *exchange) answer(kind Fault) {
	body := e.honest.body
	half := body[:len(body)/2]
	switch kind {
	case Honest, Stale:
		e.send(e.honest.header, e.honest.status, body)
	case ServerError:
		e.fail([]int{500, 502, 503, 504}[e.chance.IntN(4)])
	case Burst:
		e.fail(http.StatusServiceUnavailable)
	case Throttled:
		e.w.Header().Set("Retry-After", strconv.Itoa(int(e.faults.RetryAfter.Seconds())))
		e.fail(http.StatusTooManyRequests)
	case ThrottledDate:
		e.w.Header().Set("Retry-After", time.Now().Add(e.faults.RetryAfter).UTC().Format(http.TimeFormat))
		e.fail(http.StatusTooManyRequests)
	case Denied:
		e.fail(http.StatusForbidden)
	case Missing:
		e.fail(http.StatusNotFound)
	case ResetEarly:
		e.raw("", abort)
	case ResetMidBody:
		if isWrite(e.r) {
			e.raw("", abort)
			return
		}
		e.raw(head(len(body))+string(half), abort)
	case Truncated:
		e.raw(head(len(body))+string(half), hangUp)
	case LongLength:
		e.raw(head(len(body)+1+e.chance.IntN(1000))+string(body), hangUp)
	case ShortLength:
		e.raw(head(e.chance.IntN(len(body)))+string(body), hangUp)
	case BadChunked:
		e.raw(fmt.Sprintf("%sTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\nxyz\r\n%s", status200, len(half), half, half), hangUp)
	case Silent:
		e.await()
	case SlowHeader:
		e.drip([]byte(head(len(body))), body)
	case SlowBody:
		e.drip(nil, append([]byte(head(len(body))), body...))
	default:
		e.lie(kind, body)
	}
}

// lie answers 200 and something else than what was asked for.
func (e *exchange) lie(kind Fault, body []byte) {
	h := e.honest.header.Clone()
	switch kind {
	case BitFlip:
		body = bytes.Clone(body)
		body[e.chance.IntN(len(body))] ^= 1 << e.chance.IntN(8)
	case OtherBytes:
		body = e.other.body
	case Zeros:
		body = make([]byte, len(body))
	case WebPage, Disguised:
		body = []byte("<!DOCTYPE html><html><body>Please <a href=/login>log in</a> to use this network.</body></html>")
		h.Set("Content-Type", map[Fault]string{WebPage: "text/html; charset=utf-8", Disguised: "application/octet-stream"}[kind])
	}
	h.Del("Etag")
	e.send(h, http.StatusOK, body)
}

func (e *exchange) send(h http.Header, status int, body []byte) {
	maps.Copy(e.w.Header(), h)
	if e.r.Method != http.MethodHead {
		e.w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	}
	e.w.WriteHeader(status)
	_, _ = e.w.Write(body) // the client may be gone
}

func (e *exchange) fail(status int) {
	e.w.Header().Set("Content-Type", "text/html") // as error pages are
	e.w.WriteHeader(status)
	fmt.Fprintf(e.w, "<html>%d %s</html>", status, http.StatusText(status))
}

const status200 = "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"

func head(length int) string { return fmt.Sprintf("%sContent-Length: %d\r\n\r\n", status200, length) }

// raw writes to the connection itself, and ends it.
func (e *exchange) raw(text string, end func(*net.TCPConn)) {
	conn := e.hijack()
	_, _ = io.WriteString(conn, text) // the client may be gone
	end(conn)
}

func (e *exchange) hijack() *net.TCPConn {
	conn, _, err := http.NewResponseController(e.w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler) // the client is gone
	}
	return conn.(*net.TCPConn)
}

// hangUp ends a connection in the ordinary way.
func hangUp(c *net.TCPConn) { _ = c.Close() }

// await returns when the client gives up, or when nobody is kept waiting any more.
func (e *exchange) await() {
	select {
	case <-e.r.Context().Done():
	case <-e.done:
	}
	panic(http.ErrAbortHandler)
}

// drip writes some bytes at once and the others one by one, until the client gives up.
func (e *exchange) drip(slow, rest []byte) {
	conn := e.hijack()
	defer hangUp(conn)
	if slow == nil {
		const headAndSome = 150
		n := min(headAndSome, len(rest))
		_, _ = conn.Write(rest[:n])
		slow, rest = rest[n:], nil
	}
	tick := time.NewTicker(e.faults.drip())
	defer tick.Stop()
	for i := range slow {
		if _, err := conn.Write(slow[i : i+1]); err != nil {
			return
		}
		select {
		case <-tick.C:
		case <-e.done:
			return
		}
	}
	_, _ = conn.Write(rest)
}
