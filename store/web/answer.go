package web

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"cairn/internal/transfer"
	"cairn/store"
)

// checkAnswer is nil when the body is the object.
func checkAnswer(answer *http.Response) error {
	status := errors.New(answer.Status)
	switch code := answer.StatusCode; {
	case code == http.StatusOK:
		return transfer.CheckType(answer)
	case code == http.StatusNotFound, code == http.StatusGone:
		return store.ErrNotFound
	case code == http.StatusUnauthorized, code == http.StatusForbidden,
		code == http.StatusProxyAuthRequired:
		return fmt.Errorf("%w: %w", store.ErrDenied, status)
	case code == http.StatusTooManyRequests, code == http.StatusRequestTimeout,
		code == http.StatusTooEarly, code >= 500:
		after := transfer.RetryAfter(answer.Header.Get("Retry-After"), time.Now())
		return &store.UnavailableError{Err: status, After: after}
	}
	return fmt.Errorf("unexpected answer %w", status)
}
