// Package transfer holds the common parts of stores over HTTP: transports with timeouts, routes that do
// not lead into this machine, and bodies with size limits and stall detection. It does not know the transferred content, nor the
// meaning of error statuses.
package transfer

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"cairn/store"
)

const (
	maxHeaderBytes = 64 << 10
	readBuffer     = 64 << 10
	idleTimeout    = 90 * time.Second
)

// Transport returns a transport with at most connections connections to each host. The patience
// limits the time a server may take to accept a connection, to finish the TLS handshake, and to
// begin its answer. It uses HTTP/1.1 only: for many small objects its connections cost less than
// HTTP/2's streams.
func Transport(connections int, patience time.Duration, config *tls.Config) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Transport{
		Proxy:                  proxyFromEnvironment(),
		OnProxyConnectResponse: checkConnect,
		DialContext:            (&net.Dialer{Timeout: patience}).DialContext,
		TLSClientConfig:        config,
		TLSHandshakeTimeout:    patience,
		ResponseHeaderTimeout:  patience,
		MaxConnsPerHost:        connections,
		MaxIdleConns:           connections,
		MaxIdleConnsPerHost:    connections,
		IdleConnTimeout:        idleTimeout,
		ReadBufferSize:         readBuffer,
		MaxResponseHeaderBytes: maxHeaderBytes,
		DisableCompression:     true,
		Protocols:              protocols,
	}
}

// WebPage returns an error if the answer looks like a page of a captive portal or an error handler,
// else nil. It is a *store.UnavailableError, since such pages come from a server in front of the
// store and are temporary.
func WebPage(answer *http.Response) error {
	kind, _, _ := mime.ParseMediaType(answer.Header.Get("Content-Type"))
	if kind == "text/html" {
		return &store.UnavailableError{Err: errors.New("the answer is a web page: an error page or a login form?")}
	}
	return nil
}

// Suspicion returns a reason in the header why the body of an answer may not be the object, or nil.
// The reason proves nothing: servers guess types from the first bytes of an object, and label
// unencoded bytes with a coding.
func Suspicion(answer *http.Response) error {
	if page := WebPage(answer); page != nil {
		return page
	}
	for _, coding := range answer.Header.Values("Content-Encoding") {
		if coding != "" && !strings.EqualFold(coding, "identity") {
			return fmt.Errorf("the server sends it with Content-Encoding %.20q, which was not requested", coding)
		}
	}
	if answer.ContentLength < 0 && len(answer.TransferEncoding) == 0 {
		return errNoEnd
	}
	return nil
}

// errNoEnd reports that only the end of the connection ends the body, so a truncated body cannot be
// detected.
var errNoEnd = errors.New("the server sends neither the length of its answer nor its end")

// Size returns the size of an object from the header of an answer to HEAD or GET. An unexpected
// coding is not an error here, since the object still exists. A web page is a *store.SuspectError,
// returned with the size. Without a length the error is store.ErrNoSize.
func Size(answer *http.Response) (int64, error) {
	page := WebPage(answer)
	switch {
	case page != nil:
		return max(answer.ContentLength, 1), &store.SuspectError{Err: page}
	case answer.ContentLength < 0:
		return 0, store.ErrNoSize
	}
	return answer.ContentLength, nil
}

// RetryAfter parses both forms of the field Retry-After (RFC 9110 §10.2.3) and returns the delay. It
// returns 0 for any other text. The field Date says what time it is for the server: this machine's
// clock may be wrong. Without it, a date counts from now.
func RetryAfter(head http.Header, now time.Time) time.Duration {
	value := head.Get("Retry-After")
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	date, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	if sent, err := http.ParseTime(head.Get("Date")); err == nil {
		now = sent
	}
	return max(0, date.Sub(now))
}

const (
	window     = 32 << 10 // bytes to transfer within the patience
	firstSpace = 1 << 20  // limits the memory allocated for a Content-Length before its bytes arrive
)

// ErrStalled reports that the server sends or receives too slowly.
var ErrStalled = errors.New("the transfer has stalled")

// Incoming is an answer with an unread body.
type Incoming struct {
	Answer   *http.Response
	Patience time.Duration // for each 32 KiB
	Abort    func(error)   // ends the request; the error becomes the cause of its context
}

// Object reads an answer that is an object, as Body does. If the header contradicts the body, it
// returns the bytes with a *store.SuspectError. If such a body is also too large, it returns the
// header's reason.
func (in Incoming) Object(dst []byte, limit int64) ([]byte, error) {
	suspicion := Suspicion(in.Answer)
	out, err := in.Body(dst, limit)
	switch {
	case suspicion == nil:
		return out, err
	case err == nil:
		return out, &store.SuspectError{Err: suspicion}
	case errors.Is(err, store.ErrTooLarge):
		return nil, suspicion
	}
	return nil, err
}

// Body appends the whole body to dst. A body of more than limit bytes is store.ErrTooLarge,
// detected before it takes memory. A body that ends early or stalls is a *store.UnavailableError.
func (in Incoming) Body(dst []byte, limit int64) ([]byte, error) {
	b, err := in.openBody(limit)
	if err != nil {
		return nil, err
	}
	start := len(dst)
	dst = slices.Grow(dst, int(min(max(b.length, 0), firstSpace)))
	for int64(len(dst)-start) != b.length {
		if len(dst) == cap(dst) {
			dst = slices.Grow(dst, window)
		}
		n, err := b.Read(dst[len(dst):cap(dst)])
		dst = dst[:len(dst)+n]
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	return dst, nil
}

// Stream calls use with the body while it arrives. The reader returns the errors that Body
// documents. If use fails on bytes that the header contradicts, Stream returns the header's reason.
func (in Incoming) Stream(limit int64, use func(io.Reader) error) error {
	b, err := in.openBody(limit)
	if err == nil {
		err = use(b)
	}
	return b.explainError(err)
}

// explainError returns the reason in the header if err is about bytes that the header contradicts.
func (b *body) explainError(err error) error {
	if err != nil && b.failed == nil {
		return cmp.Or(Suspicion(b.Answer), err)
	}
	return err
}

// body reads the body of an answer with a limit and stall detection.
type body struct {
	Incoming
	length  int64 // bytes of the body; -1 if unknown
	limit   int64
	got     int64
	recent  int           // bytes of the current window
	left    time.Duration // of the patience for the current window
	stalled *time.Timer   // runs during Read; nil before the first one
	failed  error         // the error that ended reading early
}

func (in Incoming) openBody(limit int64) (*body, error) {
	b := &body{Incoming: in, length: in.Answer.ContentLength, limit: limit, left: in.Patience}
	if b.length > limit {
		return b, fmt.Errorf("%d bytes: %w (%d)", b.length, store.ErrTooLarge, limit)
	}
	return b, nil
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if b.got == b.length {
		return 0, io.EOF
	}
	if b.length >= 0 {
		p = p[:min(int64(len(p)), b.length-b.got)]
	}
	began := b.startTimer()
	n, err := b.Answer.Body.Read(p)
	b.stopTimer(began, n)
	b.got += int64(n)
	switch {
	case b.got > b.limit:
		return 0, store.ErrTooLarge
	case b.got == b.length:
		return n, nil
	case err == io.EOF && b.Answer.ContentLength < 0 && b.length >= 0: // a length that the transport does not know
		err = io.ErrUnexpectedEOF
	}
	if err != nil && err != io.EOF {
		b.failed = b.bodyError(b.got, err)
		err = b.failed
	}
	return n, err
}

// startTimer starts the timer for one read of the body. It stops between two reads, so that a slow
// reader of the body does not count as a stalled server.
func (b *body) startTimer() (began time.Time) {
	if b.stalled == nil {
		b.stalled = time.AfterFunc(b.left, func() { b.Abort(ErrStalled) })
	} else {
		b.stalled.Reset(b.left)
	}
	return time.Now()
}

// stopTimer stops the timer after a read of n bytes.
func (b *body) stopTimer(began time.Time, n int) {
	b.stalled.Stop()
	b.left -= time.Since(began)
	if b.recent += n; b.recent >= window {
		b.left, b.recent = b.Patience, 0
	}
}

// bodyError returns the error for a body that ended after got bytes.
func (in Incoming) bodyError(got int64, err error) error {
	if errors.Is(context.Cause(in.Answer.Request.Context()), ErrStalled) {
		err = ErrStalled
	}
	return &store.UnavailableError{Err: fmt.Errorf("after %d bytes: %w", got, err), Received: got}
}
