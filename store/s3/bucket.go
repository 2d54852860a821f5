// Package s3 implements a bucket in S3, or in any object storage with the same protocol. It knows
// nothing of digests. It leaves retries to store.Retry, with three exceptions: it repeats a request
// with newer keys, in the region that the server names, or for a page of a listing.
//
// It uses the signatures and the lookup of keys of minio-go, and sends its own requests. Only six
// kinds are needed, and minio-go reads the bodies of answers without a limit and lists without a
// context.
package s3

import (
	"cmp"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"cairn/internal/transfer"
	"cairn/store"
)

// Options holds the limits of a Bucket. The zero value suits a wide-area network.
type Options struct {
	// Connections limits the connections to one host, and so the requests in flight; 0 means 256.
	Connections int
	// Pool lets buckets on one server share connections; nil shares none.
	Pool *transfer.Pool
	// Patience limits the time the server may take to accept a connection, to finish the TLS
	// handshake, to begin its answer, and to send or receive each further 32 KiB; 0 means 30 s. A
	// whole request has no limit.
	Patience time.Duration
	// TLS holds root and client certificates; nil means the system's roots. If it has no roots, the
	// file named by AWS_CA_BUNDLE replaces the system's.
	TLS *tls.Config
	// Retry applies to the pages of a listing: a caller of List cannot repeat a single page.
	Retry store.Policy

	dial func(ctx context.Context, network, address string) (net.Conn, error) // for tests, which have no DNS
}

// Bucket keeps each object as an S3 object below a prefix. It is safe for concurrent use.
type Bucket struct {
	location     Location
	endpoint     endpoint
	client       *http.Client
	patience     time.Duration
	retry        store.Policy // for the pages of listings
	keys         *keys
	serverRegion atomic.Pointer[string] // the region that the server has named, if it differs from endpoint's
	bucketSeen   atomic.Bool            // an answer has shown that the bucket exists
}

var (
	_ store.Bucket  = (*Bucket)(nil)
	_ store.Lister  = (*Bucket)(nil)
	_ store.Creator = (*Bucket)(nil)
	_ store.Remover = (*Bucket)(nil)
	_ store.Sweeper = (*Bucket)(nil)

	_ store.RangeStreamer = (*Bucket)(nil)
	_ store.CreateChecker = (*Bucket)(nil)
)

// transportKey is the key of a transport in a pool.
type transportKey struct {
	connections int
	patience    time.Duration
	config      *tls.Config
}

// largestObject is S3's limit for one request, in bytes.
const largestObject = 5 << 30

// New returns a bucket at a location. It reads the environment and AWS's shared files, and sends no
// request.
func New(l Location, o Options) (*Bucket, error) {
	settings, err := readSettings(l.Profile)
	if err != nil {
		return nil, err
	}
	e, err := resolveEndpoint(l, settings)
	if err != nil {
		return nil, err
	}
	o.Connections, o.Patience = cmp.Or(o.Connections, 256), cmp.Or(o.Patience, 30*time.Second)
	tlsConfig, err := withBundle(o.TLS, os.Getenv("AWS_CA_BUNDLE"))
	if err != nil {
		return nil, err
	}
	if tlsConfig != o.TLS {
		o.Pool = nil // the bundle may be replaced
	}
	transport := transfer.Shared(o.Pool, transportKey{o.Connections, o.Patience, o.TLS}, func() *http.Transport {
		return transfer.Transport(o.Connections, o.Patience, tlsConfig)
	})
	if o.dial != nil {
		transport.DialContext = o.dial
	}
	return &Bucket{
		location: l,
		endpoint: e,
		client:   &http.Client{Transport: transport, CheckRedirect: refuseRedirect},
		patience: o.Patience,
		retry:    o.Retry,
		keys:     newKeys(l.Profile, e.atAWS()),
	}, nil
}

// refuseRedirect stops redirects, so that signed requests reach only the intended server. The
// redirect itself becomes a refusal.
func refuseRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// withBundle returns config, or, if it has no roots, a copy with the certificates of a file as its
// only roots.
func withBundle(config *tls.Config, bundle string) (*tls.Config, error) {
	if bundle == "" || config != nil && config.RootCAs != nil {
		return config, nil
	}
	text, err := os.ReadFile(bundle)
	if err != nil {
		return nil, fmt.Errorf("reading AWS_CA_BUNDLE: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("AWS_CA_BUNDLE, %s, has no certificates", bundle)
	}
	if config == nil {
		config = &tls.Config{}
	}
	config = config.Clone()
	config.RootCAs = roots
	return config, nil
}

// String implements store.Reader. It returns the location without its options.
func (b *Bucket) String() string { return b.location.urlOf("").String() }

// Read implements store.Reader, with one request.
func (b *Bucket) Read(ctx context.Context, name string, dst []byte, limit int64) (out []byte, err error) {
	err = b.doObject(ctx, name, call{method: http.MethodGet}, func(in transfer.Incoming) error {
		out, err = in.Object(dst, limit)
		return err
	})
	return out, err
}

// Stream implements store.Streamer, with one request.
func (b *Bucket) Stream(ctx context.Context, name string, limit int64, use func(io.Reader) error) error {
	return b.doObject(ctx, name, call{method: http.MethodGet}, func(in transfer.Incoming) error { return in.Stream(limit, use) })
}

// StreamRange implements store.RangeStreamer, with one request.
func (b *Bucket) StreamRange(
	ctx context.Context, name string, off, n int64, use func(store.Part, io.Reader) error,
) error {
	if err := store.CheckRange(off, n); err != nil {
		return err
	}
	c := call{method: http.MethodGet, header: http.Header{"Range": {transfer.RangeField(off, n)}}}
	return b.doObject(ctx, name, c, func(in transfer.Incoming) error { return in.StreamRange(off, n, use) })
}

// Stat implements store.Reader.
func (b *Bucket) Stat(ctx context.Context, name string) (size int64, err error) {
	err = b.doObject(ctx, name, call{method: http.MethodHead}, func(in transfer.Incoming) error {
		size, err = transfer.Size(in.Answer)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		if missing := b.checkBucket(ctx); missing != nil {
			return 0, missing
		}
	}
	return size, err
}

// checkBucket distinguishes a missing bucket from a missing object, which give the same answer to
// HEAD. It sends a request only until an answer has shown that the bucket exists.
func (b *Bucket) checkBucket(ctx context.Context) error {
	if b.bucketSeen.Load() {
		return nil
	}
	err := b.doCall(ctx, call{method: http.MethodHead}, func(in transfer.Incoming) error { return transfer.WebPage(in.Answer) })
	switch {
	case errors.Is(err, store.ErrNotFound):
		return fmt.Errorf("%s: %w", b, ErrNoBucket)
	case errors.Is(err, store.ErrUnavailable), ctx.Err() != nil:
		return fmt.Errorf("%s: %w", b, err)
	}
	b.bucketSeen.Store(true) // a denied request too shows that the bucket exists
	return nil
}

// Write implements store.Bucket. S3 answers after the object is durable.
func (b *Bucket) Write(ctx context.Context, name string, data []byte) error {
	return b.putObject(ctx, name, data, http.Header{})
}

const conflicts = 6 // attempts to create a name that other clients are writing

var conflictBackoff = store.Backoff{First: 100 * time.Millisecond, Max: 600 * time.Millisecond}

// Create implements store.Creator. It first checks with HEAD whether the object exists, then writes
// it with If-None-Match. A server that silently ignores If-None-Match replaces an object in two
// cases: the object appeared after the check, or the check was denied. A denied check is not an
// error, since a writer need not have the right to read.
func (b *Bucket) Create(ctx context.Context, name string, data []byte) error {
	_, err := b.Stat(ctx, name)
	_, suspect := errors.AsType[*store.SuspectError](err)
	switch {
	case err == nil:
		return fmt.Errorf("%s: %w", b.location.urlOf(name), store.ErrExists)
	case suspect: // the server decides
	case !errors.Is(err, store.ErrNotFound) && !errors.Is(err, store.ErrDenied) && !errors.Is(err, ErrNoBucket):
		return err
	}
	for n := 1; ; n++ {
		err := b.putObject(ctx, name, data, http.Header{"If-None-Match": {"*"}})
		if n == conflicts || !errors.Is(err, errConflict) {
			return err
		}
		// At most one of the concurrent writers has succeeded.
		if err := store.Sleep(ctx, conflictBackoff.Wait(n)); err != nil {
			return err
		}
	}
}

// probe is the name that CheckCreate writes to. No such object is stored, since its request has
// wrong checksums.
const probe = ".cairn-probe"

// CheckCreate implements store.CreateChecker. A server that does not support If-None-Match with PUT
// refuses it (501) because of the request's header. Other servers refuse the body because its
// checksums are wrong. If a server stores the object nevertheless, CheckCreate removes it.
func (b *Bucket) CheckCreate(ctx context.Context) error {
	header := http.Header{"If-None-Match": {"*"}, "Content-Md5": {base64.StdEncoding.EncodeToString(make([]byte, md5.Size))}}
	c := call{method: http.MethodPut, header: header, data: []byte(probe), sum: hexSHA256(nil)}
	err := b.doObject(ctx, probe, c, func(transfer.Incoming) error { return nil })
	switch {
	case err == nil:
		_ = b.doObject(ctx, probe, call{method: http.MethodDelete}, func(transfer.Incoming) error { return nil })
	case ctx.Err() != nil, errors.Is(err, store.ErrUnavailable), errors.Is(err, errors.ErrUnsupported):
		return err
	}
	return nil // other refusals may concern only this name
}

// Remove implements store.Remover. It checks with HEAD that the object exists, because S3's answer
// to DELETE does not report that.
func (b *Bucket) Remove(ctx context.Context, name string) error {
	if _, err := b.Stat(ctx, name); err != nil {
		return err
	}
	return b.doObject(ctx, name, call{method: http.MethodDelete}, func(in transfer.Incoming) error { return transfer.WebPage(in.Answer) })
}

// sweepBody is the body of DeleteObjects. Quiet asks for an answer that has only failures.
type sweepBody struct {
	XMLName xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ Delete"`
	Object  []sweepKey
	Quiet   bool
}

type sweepKey struct{ Key string }

// sweepResult is the answer to DeleteObjects.
type sweepResult struct {
	XMLName xml.Name `xml:"DeleteResult"`
	Error   []struct{ Key, Code, Message string }
}

// Sweep implements store.Sweeper, with one request. If the service does not know this request, Sweep sends one for
// each object.
func (b *Bucket) Sweep(ctx context.Context, names []string) error {
	body := sweepBody{Quiet: true}
	for _, name := range names {
		if err := store.CheckName(name); err != nil {
			return err
		}
		if strings.ContainsFunc(name, unicode.IsControl) { // XML has no form for it
			return b.sweepOneByOne(ctx, names)
		}
		body.Object = append(body.Object, sweepKey{b.location.keyOf(name)})
	}
	data, err := xml.Marshal(body)
	if err != nil {
		return fmt.Errorf("removing objects of %s: %w", b, err)
	}
	sum := md5.Sum(data)
	header := http.Header{"Content-Md5": {base64.StdEncoding.EncodeToString(sum[:])}, "Content-Type": {"application/xml"}}
	c := call{method: http.MethodPost, query: url.Values{"delete": {""}}, header: header, data: data}
	err = b.doCall(ctx, c, b.readSweep)
	if errors.Is(err, errors.ErrUnsupported) {
		return b.sweepOneByOne(ctx, names)
	}
	if err != nil {
		return fmt.Errorf("removing objects of %s: %w", b, err)
	}
	return nil
}

// readSweep returns the first failure of an answer to DeleteObjects.
func (b *Bucket) readSweep(in transfer.Incoming) error {
	body, err := in.Body(nil, largestPage)
	if err != nil {
		return err
	}
	var r sweepResult
	if err := xml.Unmarshal(body, &r); err != nil {
		return cmp.Or(transfer.WebPage(in.Answer), fmt.Errorf("the answer is none to DeleteObjects: %s", toPrintable(err.Error())))
	}
	for _, e := range r.Error {
		switch e.Code {
		case "NoSuchKey":
		case "AccessDenied":
			return fmt.Errorf("%s: %w", toPrintable(e.Key), ErrDenied)
		case "InternalError", "SlowDown", "ServiceUnavailable":
			return &store.UnavailableError{Err: fmt.Errorf("%s: %s", toPrintable(e.Key), toPrintable(e.Code)), Throttled: e.Code == "SlowDown"}
		default:
			return fmt.Errorf("%s: %s: %s", toPrintable(e.Key), toPrintable(e.Code), toPrintable(e.Message))
		}
	}
	return nil
}

func (b *Bucket) sweepOneByOne(ctx context.Context, names []string) error {
	for _, name := range names {
		if err := b.doObject(ctx, name, call{method: http.MethodDelete}, func(in transfer.Incoming) error { return transfer.WebPage(in.Answer) }); err != nil {
			return err
		}
	}
	return nil
}

// putObject sends an object, with its length and checksums for the server to verify.
func (b *Bucket) putObject(ctx context.Context, name string, data []byte, header http.Header) error {
	if int64(len(data)) > largestObject {
		return fmt.Errorf("%s has %d bytes: %w (%d)", b.location.urlOf(name), len(data), store.ErrTooLarge, int64(largestObject))
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	sum := md5.Sum(data)
	header.Set("Content-Md5", base64.StdEncoding.EncodeToString(sum[:]))
	header.Set("Content-Type", "application/octet-stream")
	return b.doObject(ctx, name, call{method: http.MethodPut, header: header, data: data}, func(in transfer.Incoming) error {
		if in.Answer.Header.Get("ETag") != "" {
			return nil
		}
		return cmp.Or(transfer.WebPage(in.Answer), errors.New("the answer has no ETag, unlike S3's: the object may not be stored"))
	})
}

// doObject is doCall for an object. It adds the object's location to every error.
func (b *Bucket) doObject(ctx context.Context, name string, c call, use useFunc) error {
	if err := store.CheckName(name); err != nil {
		return err
	}
	c.key = b.location.keyOf(name)
	if err := b.doCall(ctx, c, use); err != nil {
		return fmt.Errorf("%s: %w", b.location.urlOf(name), err)
	}
	return nil
}

func hexSHA256(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
