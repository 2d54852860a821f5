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
	"strings"
	"time"

	"cairn/store"
)

// check is nil when the answer is success.
func check(method string, answer *http.Response) error {
	switch method {
	case http.MethodPut:
		return checkStored(answer)
	case mkcol:
		return checkMade(answer)
	}
	return checkAnswer(answer)
}

// checkAnswer is nil when the body is the object.
func checkAnswer(answer *http.Response) error {
	switch answer.StatusCode {
	case http.StatusOK:
		return checkBody(answer)
	case http.StatusNotFound, http.StatusGone:
		return store.ErrNotFound
	}
	return refusal(answer)
}

// checkStored is nil when the object is where it was sent.
func checkStored(answer *http.Response) error {
	status := statusText(answer.StatusCode)
	switch answer.StatusCode {
	case http.StatusOK, http.StatusCreated, http.StatusNoContent:
		return checkType(answer)
	case http.StatusNotFound, http.StatusConflict:
		return fmt.Errorf("%w: %s", errNoParent, status)
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return fmt.Errorf("the server takes no uploads there (%s): %w", status, errors.ErrUnsupported)
	case http.StatusRequestEntityTooLarge:
		return fmt.Errorf("the object is larger than the server takes: %s", status)
	case http.StatusInsufficientStorage:
		return fmt.Errorf("the server has no room left: %s", status)
	}
	return refusal(answer)
}

// checkMade is nil when a directory is there, made now (201) or before (405, RFC 4918 §9.3.1).
func checkMade(answer *http.Response) error {
	switch code := answer.StatusCode; code {
	case http.StatusOK, http.StatusCreated, http.StatusNoContent, http.StatusMethodNotAllowed:
		return nil
	case http.StatusNotFound, http.StatusConflict:
		return fmt.Errorf("%w: %s", errNoParent, statusText(code))
	}
	return refusal(answer)
}

// errBadRequest is wrapped by the error about a request that the server calls bad.
var errBadRequest = errors.New(statusText(http.StatusBadRequest))

// refusal is what a status means that is no success, whatever was asked.
func refusal(answer *http.Response) error {
	status := errors.New(statusText(answer.StatusCode))
	switch code := answer.StatusCode; code {
	case http.StatusBadRequest:
		return fmt.Errorf("unexpected answer %w", errBadRequest)
	case http.StatusUnauthorized, http.StatusPaymentRequired, http.StatusForbidden,
		http.StatusProxyAuthRequired, http.StatusUnavailableForLegalReasons:
		return fmt.Errorf("%w: %w", store.ErrDenied, status)
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported: // asking again does not teach it
	case http.StatusTooManyRequests, http.StatusRequestTimeout, http.StatusTooEarly, http.StatusLocked:
		return unavailable(answer, status)
	default:
		if code >= 500 {
			return unavailable(answer, status)
		}
	}
	return fmt.Errorf("unexpected answer %w", status)
}

func unavailable(answer *http.Response, status error) error {
	return &store.UnavailableError{Err: status, After: retryAfter(answer.Header.Get("Retry-After"), time.Now())}
}

// statusText is a status in our words: the server's own may be anything, and are meant for a terminal here.
func statusText(code int) string {
	return strings.TrimSpace(fmt.Sprintf("%d %s", code, http.StatusText(code)))
}

// checkBody refuses what cannot be the object's bytes. A coding that nobody asked for is not undone: the object
// is compressed already, and what a server does to it behind everybody's back is better mended there.
func checkBody(answer *http.Response) error {
	for _, coding := range answer.Header.Values("Content-Encoding") {
		if coding != "" && !strings.EqualFold(coding, "identity") {
			return fmt.Errorf("the server sends it with Content-Encoding %.20q, which was not asked for", coding)
		}
	}
	return checkType(answer)
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
