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
		Proxy:                  http.ProxyFromEnvironment,
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

// CheckType refuses the pages that captive portals and error handlers serve in place of any object. They come
// from somebody who stands before the store, or in for it, and go away again: a *store.UnavailableError.
func CheckType(answer *http.Response) error {
	kind, _, _ := mime.ParseMediaType(answer.Header.Get("Content-Type"))
	if kind == "text/html" {
		return &store.UnavailableError{Err: errors.New("the answer is a web page: an error page or a login form?")}
	}
	return nil
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

// Body reads the whole body behind dst. More than limit bytes are store.ErrTooLarge, found before they take
// memory; a body that ends early or stalls is a *store.UnavailableError.
func (in Incoming) Body(dst []byte, limit int64) ([]byte, error) {
	length := in.Answer.ContentLength
	if length > limit {
		return nil, fmt.Errorf("%d bytes: %w (%d)", length, store.ErrTooLarge, limit)
	}
	if length < 0 && len(in.Answer.TransferEncoding) == 0 {
		return nil, errors.New("the server does not tell where its answer ends")
	}
	stalled := time.AfterFunc(in.Patience, func() { in.Abort(ErrStalled) })
	defer stalled.Stop()
	start, recent := len(dst), 0
	dst = slices.Grow(dst, int(min(max(length, 0), firstSpace)))
	for {
		if len(dst) == cap(dst) && int64(len(dst)-start) != length {
			dst = slices.Grow(dst, window)
		}
		n, err := in.Answer.Body.Read(dst[len(dst):cap(dst)])
		dst = dst[:len(dst)+n]
		got := int64(len(dst) - start)
		switch {
		case got > limit:
			return nil, store.ErrTooLarge
		case got == length, err == io.EOF:
			return dst, nil
		case err != nil:
			return nil, in.broken(got, err)
		}
		if recent += n; recent >= window {
			stalled.Reset(in.Patience)
			recent = 0
		}
	}
}

// broken explains a body that ended after got bytes.
func (in Incoming) broken(got int64, err error) error {
	if errors.Is(context.Cause(in.Answer.Request.Context()), ErrStalled) {
		err = ErrStalled
	}
	return &store.UnavailableError{Err: fmt.Errorf("after %d bytes: %w", got, err), Received: got}
}
