package web

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"cairn/internal/transfer"
	"cairn/store"
)

// hasObject reports whether the answer to a read holds the object, or the requested part of it.
func (m message) hasObject(answer *http.Response) bool {
	return answer.StatusCode == http.StatusOK || answer.StatusCode == http.StatusPartialContent && m.span != ""
}

// checkStatus returns nil if the answer reports success.
func checkStatus(m message, answer *http.Response) error {
	switch m.method {
	case http.MethodPut:
		return checkStored(answer)
	case mkcol:
		return checkDirectory(answer)
	case http.MethodHead:
		return checkHead(answer)
	}
	switch {
	case m.hasObject(answer):
		return nil
	case m.span != "" && answer.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return store.ErrRange
	}
	return checkAnswer(answer)
}

// checkAnswer returns nil if the answer is the object.
func checkAnswer(answer *http.Response) error {
	switch answer.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusNotFound, http.StatusGone:
		return store.ErrNotFound
	}
	return refusalError(answer)
}

// errHead is wrapped by an error about an answer to HEAD that does not describe the object. GET may
// get a different answer.
var errHead = errors.New("HEAD is refused")

// checkHead is checkAnswer for an answer without a body.
func checkHead(answer *http.Response) error {
	switch answer.StatusCode {
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return fmt.Errorf("%w: %s", errHead, statusText(answer.StatusCode))
	}
	return checkAnswer(answer)
}

// checkStored returns nil if the answer reports that the object is stored.
func checkStored(answer *http.Response) error {
	status := statusText(answer.StatusCode)
	switch answer.StatusCode {
	case http.StatusCreated, http.StatusNoContent:
		return nil
	case http.StatusOK: // a login form has this status too
		if page := transfer.WebPage(answer); page != nil {
			return &store.SuspectError{Err: page}
		}
		return nil
	case http.StatusNotFound, http.StatusConflict:
		return fmt.Errorf("%w: %s", errNoParent, status)
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return fmt.Errorf("the server takes no uploads there (%s): %w", status, errors.ErrUnsupported)
	case http.StatusRequestEntityTooLarge:
		return fmt.Errorf("the object is larger than the server takes: %s", status)
	case http.StatusInsufficientStorage:
		return fmt.Errorf("the server has no room left: %s", status)
	}
	return refusalError(answer)
}

// checkDirectory returns nil if the directory exists: made now (201) or before (405, RFC 4918
// §9.3.1).
func checkDirectory(answer *http.Response) error {
	switch code := answer.StatusCode; code {
	case http.StatusOK, http.StatusCreated, http.StatusNoContent, http.StatusMethodNotAllowed:
		return nil
	case http.StatusNotFound, http.StatusConflict:
		return fmt.Errorf("%w: %s", errNoParent, statusText(code))
	}
	return refusalError(answer)
}

// refusalError returns the error for a status other than success, for any method.
func refusalError(answer *http.Response) error {
	status := errors.New(statusText(answer.StatusCode))
	switch code := answer.StatusCode; code {
	case http.StatusProxyAuthRequired:
		return transfer.DeniedByProxy(status.Error())
	case http.StatusUnauthorized:
		return ErrUnauthorized
	case http.StatusPaymentRequired, http.StatusForbidden, http.StatusUnavailableForLegalReasons:
		return fmt.Errorf("%w: %w", store.ErrDenied, status)
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported: // a retry would not help
	case http.StatusTooManyRequests, http.StatusRequestTimeout, http.StatusTooEarly, http.StatusLocked:
		return unavailableError(answer, status)
	default:
		if code >= 500 {
			return unavailableError(answer, status)
		}
	}
	return fmt.Errorf("unexpected answer %w", status)
}

func unavailableError(answer *http.Response, status error) error {
	return &store.UnavailableError{
		Err:       status,
		After:     transfer.RetryAfter(answer.Header, time.Now()),
		Throttled: answer.StatusCode == http.StatusTooManyRequests || answer.StatusCode == http.StatusServiceUnavailable,
	}
}

// statusText returns a status with Go's text for it. The server's own text may contain anything and
// is not written to a terminal.
func statusText(code int) string {
	return strings.TrimSpace(fmt.Sprintf("%d %s", code, http.StatusText(code)))
}
