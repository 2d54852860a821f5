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

// Faulty is a web server that forwards requests to another server, and fails. It is safe for concurrent use.
type Faulty struct {
	inner http.Handler
	done  chan struct{} // closed by Close; ends all waiting

	mu       sync.Mutex // guards the fields below
	faults   Faults
	asked    map[string]int // number of requests for each object
	lasting  Fault          // the fault of the next requests
	left     int            // the number of these requests
	previous answer         // to an earlier request, for OtherBytes
	of       string         // the object of previous
	requests int64
	counts   map[Fault]int64
}

// NewFaulty returns a Faulty in front of a server of static files, or of other answers that fit in memory.
func NewFaulty(inner http.Handler, f Faults) *Faulty {
	return &Faulty{inner: inner, faults: f, done: make(chan struct{}), asked: map[string]int{}, counts: map[Fault]int64{}}
}

// Set changes the faults from now on, and resets the counts of requests for each object.
func (s *Faulty) Set(f Faults) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults, s.left = f, 0
	clear(s.asked)
}

// Counts returns the number of faults so far by kind. Honest answers are not counted.
func (s *Faulty) Counts() map[Fault]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.counts)
}

// Total returns the number of faults so far.
func (s *Faulty) Total() (n int64) {
	for _, k := range s.Counts() {
		n += k
	}
	return n
}

// Requests returns the number of requests, including those with honest answers.
func (s *Faulty) Requests() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests
}

// Close ends all waiting requests. It must be called only once.
func (s *Faulty) Close() { close(s.done) }

// ServeHTTP implements http.Handler.
func (s *Faulty) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	f, kind, chance := s.chooseFault(r)
	honest := s.honestAnswer(r, body, kind, f)
	kind, other := s.recordFault(r, kind, honest)
	e := &exchange{w: w, r: r, faults: f, chance: chance, honest: honest, other: other, done: s.done}
	e.answerFault(kind)
}

// chooseFault chooses the fault of a request.
func (s *Faulty) chooseFault(r *http.Request) (Faults, Fault, *rand.Rand) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests++
	object := r.Method + " " + r.URL.Path
	s.asked[object]++
	chance := s.faults.newRand(object, s.asked[object])
	switch {
	case s.faults.Only != nil && !s.faults.Only(r):
		return s.faults, Honest, chance
	case s.faults.First > 0 && s.asked[object] > s.faults.First:
		return s.faults, Honest, chance
	case s.left > 0:
		s.left--
		return s.faults, s.lasting, chance
	}
	kind := s.faults.pickFault(chance)
	if n := s.faults.numRequests(kind); n > 1 {
		s.lasting, s.left = kind, n-1
	}
	return s.faults, kind, chance
}

// honestAnswer returns the right answer, or the earlier one for Stale. It carries out a write only if kind does not
// refuse it.
func (s *Faulty) honestAnswer(r *http.Request, body []byte, kind Fault, f Faults) *answer {
	if isWrite(r) && kind.refuses() {
		return &answer{status: http.StatusOK}
	}
	again := r.Clone(r.Context())
	again.Body = io.NopCloser(bytes.NewReader(body))
	if before := f.stalePath(r.URL.Path); kind == Stale && before != "" {
		again.URL.Path, again.URL.RawPath = before, ""
	}
	a := &answer{header: http.Header{}, status: http.StatusOK}
	s.inner.ServeHTTP(a, again)
	return a
}

func (f Faults) stalePath(path string) string {
	if f.Stale == nil {
		return ""
	}
	return f.Stale(path)
}

// recordFault counts the fault if it applies here, and keeps the answer for OtherBytes.
func (s *Faulty) recordFault(r *http.Request, kind Fault, honest *answer) (Fault, answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	other := s.previous
	switch {
	case !kind.applies(r, honest),
		kind == OtherBytes && (other.body == nil || s.of == r.URL.Path),
		kind == Stale && s.faults.stalePath(r.URL.Path) == "":
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

// answer is a recorded answer of a server.
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

// exchange is a request in progress.
type exchange struct {
	w      http.ResponseWriter
	r      *http.Request
	faults Faults
	chance *rand.Rand
	honest *answer
	other  answer
	done   <-chan struct{}
}

// answerFault sends an answer with a fault.
func (e *exchange) answerFault(kind Fault) {
	body := e.honest.body
	half := body[:len(body)/2]
	switch kind {
	case Honest, Stale:
		e.sendAnswer(e.honest.header, e.honest.status, body)
	case ServerError:
		e.sendStatus([]int{500, 502, 503, 504}[e.chance.IntN(4)])
	case Burst:
		e.sendStatus(http.StatusServiceUnavailable)
	case Throttled:
		e.w.Header().Set("Retry-After", strconv.Itoa(int(e.faults.RetryAfter.Seconds())))
		e.sendStatus(http.StatusTooManyRequests)
	case ThrottledDate:
		e.w.Header().Set("Retry-After", time.Now().Add(e.faults.RetryAfter).UTC().Format(http.TimeFormat))
		e.sendStatus(http.StatusTooManyRequests)
	case Denied:
		e.sendStatus(http.StatusForbidden)
	case Missing:
		e.sendStatus(http.StatusNotFound)
	case ResetEarly:
		e.writeRaw("", abort)
	case ResetMidBody:
		if isWrite(e.r) {
			e.writeRaw("", abort)
			return
		}
		e.writeRaw(headOf(len(body))+string(half), abort)
	case Truncated:
		e.writeRaw(headOf(len(body))+string(half), hangUp)
	case LongLength:
		e.writeRaw(headOf(len(body)+1+e.chance.IntN(1000))+string(body), hangUp)
	case ShortLength:
		e.writeRaw(headOf(e.chance.IntN(len(body)))+string(body), hangUp)
	case BadChunked:
		e.writeRaw(fmt.Sprintf("%sTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\nxyz\r\n%s", status200, len(half), half, half), hangUp)
	case Silent:
		e.awaitClose()
	case SlowHeader:
		e.writeSlowly([]byte(headOf(len(body))), body)
	case SlowBody:
		e.writeSlowly(nil, append([]byte(headOf(len(body))), body...))
	default:
		e.answerWrong(kind, body)
	}
}

// answerWrong sends 200 and a wrong body.
func (e *exchange) answerWrong(kind Fault, body []byte) {
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
	e.sendAnswer(h, http.StatusOK, body)
}

func (e *exchange) sendAnswer(h http.Header, status int, body []byte) {
	maps.Copy(e.w.Header(), h)
	if e.r.Method != http.MethodHead {
		e.w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	}
	e.w.WriteHeader(status)
	_, _ = e.w.Write(body) // fails if the client has closed the connection
}

func (e *exchange) sendStatus(status int) {
	e.w.Header().Set("Content-Type", "text/html") // as in error pages
	e.w.WriteHeader(status)
	fmt.Fprintf(e.w, "<html>%d %s</html>", status, http.StatusText(status))
}

const status200 = "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"

func headOf(length int) string { return fmt.Sprintf("%sContent-Length: %d\r\n\r\n", status200, length) }

// writeRaw writes to the connection itself, and ends it.
func (e *exchange) writeRaw(text string, end func(*net.TCPConn)) {
	conn := e.hijack()
	_, _ = io.WriteString(conn, text) // fails if the client has closed the connection
	end(conn)
}

func (e *exchange) hijack() *net.TCPConn {
	conn, _, err := http.NewResponseController(e.w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler) // the client has closed the connection
	}
	return conn.(*net.TCPConn)
}

// hangUp closes a connection without a reset.
func hangUp(c *net.TCPConn) { _ = c.Close() }

// awaitClose blocks until the client closes the connection, or Close is called.
func (e *exchange) awaitClose() {
	select {
	case <-e.r.Context().Done():
	case <-e.done:
	}
	panic(http.ErrAbortHandler)
}

// writeSlowly writes some bytes at once and the others one by one, until the client closes the connection.
func (e *exchange) writeSlowly(slow, rest []byte) {
	conn := e.hijack()
	defer hangUp(conn)
	if slow == nil {
		const headAndSome = 150
		n := min(headAndSome, len(rest))
		_, _ = conn.Write(rest[:n])
		slow, rest = rest[n:], nil
	}
	tick := time.NewTicker(e.faults.dripInterval())
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
