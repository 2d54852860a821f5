// Package web implements a bucket on a web server: it reads objects from any static server over
// HTTP or HTTPS, and writes them to a server that supports WebDAV's PUT. It knows nothing of
// digests. It does not retry network failures: see store.Retry.
package web

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"cairn/internal/transfer"
	"cairn/store"
)

// Options holds the limits and credentials of a Bucket. The zero value suits a wide-area network.
type Options struct {
	// Connections limits the connections to one host, and so the requests in flight; 0 means 256.
	Connections int
	// Pool lets buckets on one server share connections; nil shares none.
	Pool *transfer.Pool
	// Patience limits the time the server may take to accept a connection, to finish the TLS
	// handshake, to begin its answer, and to send or receive each further 32 KiB; 0 means 30 s. A
	// whole request has no limit.
	Patience time.Duration
	// TLS holds root and client certificates; nil means the system's roots. The minimum version is
	// TLS 1.2.
	TLS *tls.Config
	// Credentials are sent with each request to the hosts that they are for, see Credential.
	Credentials []*Credential
}

// Bucket reads objects below a base URL, and writes them to a server that supports WebDAV's PUT,
// such as nginx with dav_methods and create_full_put_path. The server must show an object only when
// it is complete, and must store it durably: HTTP cannot express either, so Bucket does not check
// it.
//
// Bucket does not implement store.Creator: some servers, nginx among them, ignore If-None-Match on
// PUT, and then answer as if the name had been free. Bucket is safe for concurrent use.
type Bucket struct {
	base *url.URL // without user and password
	routes
	keys     keys
	patience time.Duration
	moved    atomic.Pointer[moved] // nil unless the server redirects permanently
	forms    forms
	absence  absence
}

var (
	_ store.Bucket        = (*Bucket)(nil)
	_ store.RangeStreamer = (*Bucket)(nil)
)

// New returns a bucket below base. It sends base's query with every request (pre-signed URLs), and
// its user and password as basic authentication; neither appears in String or in an error. It
// follows redirects, but never from https to http. To another origin it sends no query, password,
// credential or client certificate. It follows a redirect to this machine or its links only from a
// server there. New sends no request.
func New(base Location, o Options) (*Bucket, error) {
	o.Connections, o.Patience = cmp.Or(o.Connections, 256), cmp.Or(o.Patience, 30*time.Second)
	keys, err := keysFor(base.url(), o.Credentials)
	if err != nil {
		return nil, err
	}
	u := *base.url()
	u.User = nil
	shared := transfer.Shared(o.Pool, routesKey{o.Connections, o.Patience, o.TLS}, func() routes { return newRoutes(o) })
	return &Bucket{base: &u, routes: shared, keys: keys, patience: o.Patience}, nil
}

// routes are the ways to servers.
type routes struct {
	own     *transfer.Route                  // to the base's own origin
	foreign [transfer.Scopes]*transfer.Route // to redirect targets, by the scope of the redirecting server; without a client certificate
}

// routesKey is the key of routes in a pool.
type routesKey struct {
	connections int
	patience    time.Duration
	config      *tls.Config
}

func newRoutes(o Options) (r routes) {
	if o.TLS == nil {
		o.TLS = new(tls.Config)
	}
	o.TLS = o.TLS.Clone()
	o.TLS.MinVersion = max(o.TLS.MinVersion, tls.VersionTLS12)
	r.own = transfer.NewRoute(o.Connections, o.Patience, o.TLS)
	o.TLS = o.TLS.Clone()
	o.TLS.Certificates, o.TLS.GetClientCertificate = nil, nil
	for from := range transfer.Scopes {
		r.foreign[from] = transfer.NewGuardedRoute(from, o.Connections, o.Patience, o.TLS)
	}
	return r
}

// String implements store.Reader.
func (b *Bucket) String() string { return publicURL(b.base) }

// objectURL returns the address of an object.
func (b *Bucket) objectURL(name string) *url.URL { return joinURL(b.base, name) }

func joinURL(base *url.URL, name string) *url.URL { return newLocation(base).Join(name).url() }

func escapePath(name string) string { return (&url.URL{Path: name}).EscapedPath() }

// Read implements store.Reader.
func (b *Bucket) Read(ctx context.Context, name string, dst []byte, limit int64) (out []byte, err error) {
	err = b.requestObject(ctx, message{method: http.MethodGet, name: name}, func(in transfer.Incoming) error {
		out, err = in.Object(dst, limit)
		return err
	})
	return out, err
}

// Stream implements store.Streamer.
func (b *Bucket) Stream(ctx context.Context, name string, limit int64, use func(io.Reader) error) error {
	m := message{method: http.MethodGet, name: name}
	return b.requestObject(ctx, m, func(in transfer.Incoming) error { return in.Stream(limit, use) })
}

// StreamRange implements store.RangeStreamer.
func (b *Bucket) StreamRange(
	ctx context.Context, name string, off, n int64, use func(store.Part, io.Reader) error,
) error {
	if err := store.CheckRange(off, n); err != nil {
		return err
	}
	m := message{method: http.MethodGet, name: name, span: transfer.RangeField(off, n)}
	return b.requestObject(ctx, m, func(in transfer.Incoming) error { return in.StreamRange(off, n, use) })
}

// Stat implements store.Reader. It returns ErrNoAbsence if the server reports every chunk as
// present.
func (b *Bucket) Stat(ctx context.Context, name string) (size int64, err error) {
	size, err = b.requestSize(ctx, name)
	if err == nil || errors.Is(err, store.ErrNoSize) {
		if hidden := b.checkAbsence(ctx, name); hidden != nil {
			return 0, hidden
		}
	}
	return size, err
}

// requestSize requests the size of an object with HEAD. If the server refuses HEAD, it sends a GET
// and reads only the header of the answer.
func (b *Bucket) requestSize(ctx context.Context, name string) (size int64, err error) {
	readSize := func(in transfer.Incoming) error {
		size, err = transfer.Size(in.Answer)
		return err
	}
	err = b.requestObject(ctx, message{method: http.MethodHead, name: name}, readSize)
	if errors.Is(err, errHead) {
		err = b.requestObject(ctx, message{method: http.MethodGet, name: name}, readSize)
	}
	return size, err
}
