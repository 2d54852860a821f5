// Package transfer has what stores behind HTTP share: a transport that waits for nobody for ever, and bodies
// that are kept within a limit and given up when they stall. It knows nothing of what is transferred, nor of how
// a server says no.
package transfer

import (
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

// Transport makes as many connections to a host as it is told. The patience is how long a server may take to
// accept a connection, for the TLS handshake, and to begin its answer. It speaks HTTP/1.1 only: for many small
// objects its connections cost less than HTTP/2's streams.
func Transport(connections int, patience time.Duration, trust *tls.Config) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Transport{
		Proxy:                  proxies(),
		OnProxyConnectResponse: checkConnect,
		DialContext:            (&net.Dialer{Timeout: patience}).DialContext,
		TLSClientConfig:        trust,
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

// WebPage is the error about an answer that looks like the pages of captive portals and error handlers, or nil. They come
// from a server in front of the store, and go away again: a *store.UnavailableError.
func WebPage(answer *http.Response) error {
	kind, _, _ := mime.ParseMediaType(answer.Header.Get("Content-Type"))
	if kind == "text/html" {
		return &store.UnavailableError{Err: errors.New("the answer is a web page: an error page or a login form?")}
	}
	return nil
}

// Suspicion is why the body of an answer may not be the object, as the header tells, or nil. It proves nothing: servers
// guess types from the first bytes of an object, and label codings of bytes that they send as they are.
func Suspicion(answer *http.Response) error {
	if page := WebPage(answer); page != nil {
		return page
	}
	for _, coding := range answer.Header.Values("Content-Encoding") {
		if coding != "" && !strings.EqualFold(coding, "identity") {
			return fmt.Errorf("the server sends it with Content-Encoding %.20q, which was not asked for", coding)
		}
	}
	if answer.ContentLength < 0 && len(answer.TransferEncoding) == 0 {
		return errNoEnd
	}
	return nil
}

// errNoEnd says that a body ends with its connection, so that nobody knows whether all of it came.
var errNoEnd = errors.New("the server does not tell where its answer ends")

// Size is the size of an object, by the header of an answer to HEAD or GET. A coding says nothing against the object's
// being there; a web page does, and comes with the size as a *store.SuspectError.
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

// RetryAfter reads the two forms of RFC 9110 §10.2.3; anything else is 0.
func RetryAfter(value string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if date, err := http.ParseTime(value); err == nil {
		return max(0, date.Sub(now))
	}
	return 0
}

const (
	window     = 32 << 10 // bytes that have to move within the patience
	firstSpace = 1 << 20  // memory that a promised length may take before its bytes arrive
)

// ErrStalled says that the server sends or takes too little.
var ErrStalled = errors.New("the transfer has stalled")

// Incoming is an answer whose body is still to come.
type Incoming struct {
	Answer   *http.Response
	Patience time.Duration // for each 32 KiB
	Abort    func(error)   // ends the request; the error becomes its context's cause
}

// Object is Body of an answer that is an object. When the header contradicts it, the bytes come with a
// *store.SuspectError; of a body that is too large the header tells why.
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

// Body reads the whole body behind dst. More than limit bytes are store.ErrTooLarge, found before they take
// memory; a body that ends early or stalls is a *store.UnavailableError.
func (in Incoming) Body(dst []byte, limit int64) ([]byte, error) {
	b, err := in.open(limit)
	if err != nil {
		return nil, err
	}
	defer b.stalled.Stop()
	length, start := in.Answer.ContentLength, len(dst)
	dst = slices.Grow(dst, int(min(max(length, 0), firstSpace)))
	for int64(len(dst)-start) != length {
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

// Stream hands the body to use while it comes. What Body says of its end, size and pace is an error of the reader's.
// When use fails on bytes that the header contradicts, the header is why.
func (in Incoming) Stream(limit int64, use func(io.Reader) error) error {
	suspicion := Suspicion(in.Answer)
	b, err := in.open(limit)
	if err == nil {
		defer b.stalled.Stop()
		err = use(b)
	}
	if err != nil && b.failed == nil && suspicion != nil {
		return suspicion
	}
	return err
}

// body is a body that is read.
type body struct {
	Incoming
	limit   int64
	got     int64
	recent  int // bytes, since the patience began
	stalled *time.Timer
	failed  error // why reading it ended early
}

func (in Incoming) open(limit int64) (*body, error) {
	b := &body{Incoming: in, limit: limit}
	if length := in.Answer.ContentLength; length > limit {
		return b, fmt.Errorf("%d bytes: %w (%d)", length, store.ErrTooLarge, limit)
	}
	b.stalled = time.AfterFunc(in.Patience, func() { in.Abort(ErrStalled) })
	return b, nil
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if b.got == b.Answer.ContentLength {
		return 0, io.EOF
	}
	n, err := b.Answer.Body.Read(p)
	b.got += int64(n)
	switch {
	case b.got > b.limit:
		return 0, store.ErrTooLarge
	case b.got == b.Answer.ContentLength:
		return n, nil
	case err != nil && err != io.EOF:
		b.failed = b.broken(b.got, err)
		return n, b.failed
	}
	if b.recent += n; b.recent >= window {
		b.stalled.Reset(b.Patience)
		b.recent = 0
	}
	return n, err
}

// broken explains a body that ended after got bytes.
func (in Incoming) broken(got int64, err error) error {
	if errors.Is(context.Cause(in.Answer.Request.Context()), ErrStalled) {
		err = ErrStalled
	}
	return &store.UnavailableError{Err: fmt.Errorf("after %d bytes: %w", got, err), Received: got}
}
