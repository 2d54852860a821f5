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

// ErrNoBucket says that the bucket does not exist. It is not store.ErrNotFound, since that is an answer about one
// object of a store that is there: a mistyped bucket would look like an empty store, and who has another one to ask
// would go on there without a word.
var ErrNoBucket = errors.New("there is no such bucket")

// What S3 refuses, and what can be done about it.
var (
	// ErrDenied is a store.ErrDenied of S3.
	ErrDenied = fmt.Errorf("%w by S3", store.ErrDenied)
	// ErrClock says that the time of a request is not the server's.
	ErrClock = fmt.Errorf("%w, whose clock differs from this machine's", ErrDenied)
)

// errConflict says that another writer was busy with the same name.
var errConflict = errors.New("written at the same time")

const largestRefusal = 64 << 10 // bytes of an error's body that are read

// refusal is an answer that is not what was asked for.
type refusal struct {
	head    bool // the request was a HEAD, whose answers have no bodies
	status  int
	text    string // the status line
	code    string // S3's word for it; "" when the body was none
	message string
	region  string // where the bucket is, if the server says so
	to      string // the host that a redirect leads to
	after   time.Duration
}

// errorBody is the body of a refusal.
type errorBody struct {
	XMLName xml.Name `xml:"Error"`
	Code    string
	Message string
	Region  string
}

// readRefusal makes of an answer and its body, if that could be read, what it means.
func readRefusal(answer *http.Response, body []byte) *refusal {
	r := &refusal{
		head:   answer.Request.Method == http.MethodHead,
		status: answer.StatusCode,
		text:   printable(answer.Status),
		region: answer.Header.Get("X-Amz-Bucket-Region"),
		after:  transfer.RetryAfter(answer.Header.Get("Retry-After"), time.Now()),
	}
	if to, err := answer.Location(); err == nil {
		r.to = printable(to.Host)
	}
	var e errorBody
	if err := xml.NewDecoder(bytes.NewReader(body)).Decode(&e); err == nil {
		r.code, r.message = printable(e.Code), printable(e.Message)
		if r.region == "" {
			r.region = e.Region
		}
	}
	if !regionPattern.MatchString(r.region) {
		r.region = ""
	}
	return r
}

// words are S3's, or the status line.
func (r *refusal) words() error {
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
	codesOfLoad = []string{
		"SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded", "ServiceUnavailable",
		"Busy", "BandwidthLimitExceeded",
	}
	codesOfTrouble = []string{"InternalError", "RequestTimeout", "OperationAborted"}
)

// refusesKeys says that the server takes these keys for invalid or expired; sure is false if it gave no reason.
func (r *refusal) refusesKeys() (may, sure bool) {
	if slices.Contains(codesOfKeys, r.code) {
		return true, true
	}
	silent := r.code == "" && (r.status == http.StatusBadRequest || r.status == http.StatusForbidden)
	return silent || r.status == http.StatusUnauthorized, false
}

// absent says that an S3 server says so. Any web server, also one that is no store at all, has 404 for a GET.
func (r *refusal) absent() bool {
	return r.status == http.StatusNotFound && (r.code == "NoSuchKey" || r.code == "" && r.head)
}

// throttles says that the server is asked too much.
func (r *refusal) throttles() bool {
	return slices.Contains(codesOfLoad, r.code) || r.status == http.StatusTooManyRequests ||
		r.status == http.StatusServiceUnavailable && !slices.Contains(codesOfTrouble, r.code)
}

// Error implements error, for use within this package.
func (r *refusal) Error() string { return r.words().Error() }

// err is the refusal as a store's caller decides by it.
func (r *refusal) err() error {
	switch code := r.status; {
	case r.code == "NoSuchBucket":
		return fmt.Errorf("%w (%w)", ErrNoBucket, r.words())
	case r.code == "RequestTimeTooSkewed", r.code == "RequestExpired":
		return fmt.Errorf("%w: %w", ErrClock, r.words())
	case code == http.StatusProxyAuthRequired:
		return transfer.DeniedByProxy(r.text)
	case slices.Contains(codesOfKeys, r.code), slices.Contains(codesOfDenial, r.code),
		code == http.StatusUnauthorized, code == http.StatusForbidden:
		return fmt.Errorf("%w: %w", ErrDenied, r.words())
	case r.throttles():
		return &store.UnavailableError{Err: r.words(), After: r.after, Throttled: true}
	case slices.Contains(codesOfTrouble, r.code), code == http.StatusRequestTimeout,
		code >= 500 && code != http.StatusNotImplemented:
		return &store.UnavailableError{Err: r.words(), After: r.after}
	case r.absent():
		return store.ErrNotFound
	case code == http.StatusPreconditionFailed:
		return fmt.Errorf("%w: %w", store.ErrExists, r.words())
	case code == http.StatusConflict:
		return &store.UnavailableError{Err: fmt.Errorf("%w: %w", errConflict, r.words()), After: r.after}
	case code == http.StatusNotImplemented:
		return fmt.Errorf("%w: %w", errors.ErrUnsupported, r.words())
	}
	return fmt.Errorf("unexpected answer %w", r.words())
}
