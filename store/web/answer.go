package web

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"time"

	"cairn/store"
)

// checkAnswer is nil when the body is the object.
func checkAnswer(answer *http.Response) error {
	status := errors.New(answer.Status)
	switch code := answer.StatusCode; {
	case code == http.StatusOK:
		return checkType(answer)
	case code == http.StatusNotFound, code == http.StatusGone:
		return store.ErrNotFound
	case code == http.StatusUnauthorized, code == http.StatusForbidden,
		code == http.StatusProxyAuthRequired:
		return fmt.Errorf("%w: %w", store.ErrDenied, status)
	case code == http.StatusTooManyRequests, code == http.StatusRequestTimeout,
		code == http.StatusTooEarly, code >= 500:
		after := retryAfter(answer.Header.Get("Retry-After"), time.Now())
		return &store.UnavailableError{Err: status, After: after}
	}
	return fmt.Errorf("unexpected answer %w", status)
}

// checkType refuses the pages that captive portals and error handlers serve in place of any object.
func checkType(answer *http.Response) error {
	kind, _, _ := mime.ParseMediaType(answer.Header.Get("Content-Type"))
	if kind == "text/html" {
		return errors.New("the answer is a web page: an error page or a login form?")
	}
	return nil
}

// retryAfter reads the two forms of RFC 9110 §10.2.3; anything else is 0.
func retryAfter(value string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if date, err := http.ParseTime(value); err == nil {
		return max(0, date.Sub(now))
	}
	return 0
}

const (
	window     = 32 << 10 // bytes that have to arrive within the patience
	firstSpace = 1 << 20  // memory that a promised length may take before its bytes arrive
)

// errStalled says that the server sends too little.
var errStalled = errors.New("the transfer has stalled")

// body reads a whole body of at most limit bytes behind dst. It aborts the request when that stalls.
func (r *Reader) body(answer *http.Response, dst []byte, limit int64, abort func(error)) ([]byte, error) {
	length := answer.ContentLength
	if length > limit {
		return nil, fmt.Errorf("%d bytes: %w (%d)", length, store.ErrTooLarge, limit)
	}
	if length < 0 && len(answer.TransferEncoding) == 0 {
		return nil, errors.New("the server does not tell where its answer ends")
	}
	stalled := time.AfterFunc(r.patience, func() { abort(errStalled) })
	defer stalled.Stop()
	start, recent := len(dst), 0
	dst = slices.Grow(dst, int(min(max(length, 0), firstSpace)))
	for {
		if len(dst) == cap(dst) && int64(len(dst)-start) != length {
			dst = slices.Grow(dst, window)
		}
		n, err := answer.Body.Read(dst[len(dst):cap(dst)])
		dst = dst[:len(dst)+n]
		got := int64(len(dst) - start)
		switch {
		case got > limit:
			return nil, store.ErrTooLarge
		case got == length, err == io.EOF:
			return dst, nil
		case err != nil:
			return nil, broken(answer, got, err)
		}
		if recent += n; recent >= window {
			stalled.Reset(r.patience)
			recent = 0
		}
	}
}

// broken explains a body that ended after got bytes.
func broken(answer *http.Response, got int64, err error) error {
	if errors.Is(context.Cause(answer.Request.Context()), errStalled) {
		err = errStalled
	}
	return &store.UnavailableError{Err: fmt.Errorf("after %d bytes: %w", got, err)}
}
