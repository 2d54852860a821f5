package s3

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"cairn/internal/transfer"
	"cairn/store"
)

// ErrNoBucket reports that the bucket does not exist. It is not store.ErrNotFound, which reports
// that an existing store lacks one object. Otherwise a mistyped bucket would look like an empty
// store, and a client with several stores would silently use the next one.
var ErrNoBucket = errors.New("there is no such bucket")

// Reasons for which S3 refuses a request, and which a user can act on.
var (
	// ErrDenied is the store.ErrDenied of S3.
	ErrDenied = fmt.Errorf("%w by S3", store.ErrDenied)
	// ErrClock reports that the time of a request differs too much from the server's clock.
	ErrClock = fmt.Errorf("%w, whose clock differs from this machine's", ErrDenied)
)

// errConflict reports a concurrent write of the same name.
var errConflict = errors.New("written at the same time")

const largestRefusal = 64 << 10 // limits the bytes read of an error's body

// refusal is an answer that reports a failure. It implements error.
type refusal struct {
	head    bool // the request was a HEAD, whose answers have no bodies
	status  int
	text    string // the status line
	code    string // S3's error code; "" if the body has none
	message string
	region  string // the region of the bucket, if the server names it
	to      string // the host of a redirect's target
	after   time.Duration
}

// errorBody is the body of a refusal.
type errorBody struct {
	XMLName xml.Name `xml:"Error"`
	Code    string
	Message string
	Region  string
}

// readRefusal parses an answer and the part of its body that was read.
func readRefusal(answer *http.Response, body []byte) *refusal {
	r := &refusal{
		head:   answer.Request.Method == http.MethodHead,
		status: answer.StatusCode,
		text:   toPrintable(answer.Status),
		region: answer.Header.Get("X-Amz-Bucket-Region"),
		after:  transfer.RetryAfter(answer.Header, time.Now()),
	}
	if to, err := answer.Location(); err == nil {
		r.to = toPrintable(to.Host)
	}
	var e errorBody
	if err := xml.NewDecoder(bytes.NewReader(body)).Decode(&e); err == nil {
		r.code, r.message = toPrintable(e.Code), toPrintable(e.Message)
		if r.region == "" {
			r.region = e.Region
		}
	}
	if !regionPattern.MatchString(r.region) {
		r.region = ""
	}
	return r
}

// description returns S3's code and message, or the status line if there is no code.
func (r *refusal) description() error {
	switch {
	case r.code == "" && r.to != "":
		return fmt.Errorf("%s, to %s, which is not followed", r.text, r.to)
	case r.code == "":
		return errors.New(r.text)
	case r.message == "":
		return errors.New(r.code)
	}
	return fmt.Errorf("%s: %s", r.code, r.message)
}

var (
	codesOfKeys = []string{
		"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken", "InvalidAccessKeyId",
		"InvalidClientTokenId", "UnrecognizedClientException", "SignatureDoesNotMatch", "InvalidSecurity",
		"RequestExpired",
	}
	codesOfDenial = []string{
		"AccessDenied", "AllAccessDisabled", "AccountProblem", "RequestTimeTooSkewed", "NotSignedUp",
		"UnauthorizedAccess",
	}
	codesOfThrottling = []string{
		"SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded", "ServiceUnavailable",
		"Busy", "BandwidthLimitExceeded",
	}
	codesOfTrouble = []string{"InternalError", "RequestTimeout", "OperationAborted"}
)

// refusesKeys reports whether the server may regard the keys as invalid or expired. sure is false
// if it gave no reason.
func (r *refusal) refusesKeys() (may, sure bool) {
	if slices.Contains(codesOfKeys, r.code) {
		return true, true
	}
	silent := r.code == "" && (r.status == http.StatusBadRequest || r.status == http.StatusForbidden)
	return silent || r.status == http.StatusUnauthorized, false
}

// isNotFound reports whether an S3 server states that the object does not exist. A plain 404 to a
// GET does not count: any web server can send it.
func (r *refusal) isNotFound() bool {
	return r.status == http.StatusNotFound && (r.code == "NoSuchKey" || r.code == "" && r.head)
}

// isThrottling reports whether the server is overloaded.
func (r *refusal) isThrottling() bool {
	return slices.Contains(codesOfThrottling, r.code) || r.status == http.StatusTooManyRequests ||
		r.status == http.StatusServiceUnavailable && !slices.Contains(codesOfTrouble, r.code)
}

// Error implements error, for use within this package.
func (r *refusal) Error() string { return r.description().Error() }

// storeError returns the refusal as one of the errors that package store documents.
func (r *refusal) storeError() error {
	switch code := r.status; {
	case r.code == "NoSuchBucket":
		return fmt.Errorf("%w (%w)", ErrNoBucket, r.description())
	case r.code == "RequestTimeTooSkewed", r.code == "RequestExpired":
		return fmt.Errorf("%w: %w", ErrClock, r.description())
	case code == http.StatusProxyAuthRequired:
		return transfer.DeniedByProxy(r.text)
	case slices.Contains(codesOfKeys, r.code), slices.Contains(codesOfDenial, r.code),
		code == http.StatusUnauthorized, code == http.StatusForbidden:
		return fmt.Errorf("%w: %w", ErrDenied, r.description())
	case r.isThrottling():
		return &store.UnavailableError{Err: r.description(), After: r.after, Throttled: true}
	case slices.Contains(codesOfTrouble, r.code), code == http.StatusRequestTimeout,
		code >= 500 && code != http.StatusNotImplemented:
		return &store.UnavailableError{Err: r.description(), After: r.after}
	case r.isNotFound():
		return store.ErrNotFound
	case code == http.StatusRequestedRangeNotSatisfiable:
		return fmt.Errorf("%w: %w", store.ErrRange, r.description())
	case code == http.StatusPreconditionFailed:
		return fmt.Errorf("%w: %w", store.ErrExists, r.description())
	case code == http.StatusConflict:
		return &store.UnavailableError{Err: fmt.Errorf("%w: %w", errConflict, r.description()), After: r.after}
	case code == http.StatusNotImplemented, code == http.StatusMethodNotAllowed:
		return fmt.Errorf("%w: %w", errors.ErrUnsupported, r.description())
	}
	return fmt.Errorf("unexpected answer %w", r.description())
}
