// Package web reads objects from any static web server over HTTP or HTTPS, and writes them to one that takes
// WebDAV's PUT. It knows nothing of digests and never tries twice what the network broke: see store.Retry.
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

// Options are the limits of a Bucket, and what it says of itself. The zero value suits a wide-area network.
type Options struct {
	// Connections is how many there may be to one host, and so how many requests run at once; 0 is 64.
	Connections int
	// Patience is how long the server may take to accept a connection, to finish the TLS handshake, to begin
	// its answer, and to send or take each further 32 KiB; 0 is 30 s. There is no limit on a whole request.
	Patience time.Duration
	// TLS holds trust and client certificates; nil is the system's trust. Nothing below TLS 1.2 is spoken.
	TLS *tls.Config
	// Credentials are sent with each request to the hosts that they are for, see Credential.
	Credentials []*Credential
}

// Bucket reads objects below a base URL, and writes them to a server that takes WebDAV's PUT, such as nginx with
// dav_methods and create_full_put_path. The server is trusted to show an object only when it is whole, and to keep it:
// HTTP has no word for either. It is no store.Creator: nginx, for one, ignores If-None-Match on PUT, and a server that
// ignores it answers as one does that found the name free. Safe for concurrent use.
type Bucket struct {
	base     *url.URL          // without user and password
	own      http.RoundTripper // to the base's own origin
	foreign  http.RoundTripper // to where redirects lead: it has no client certificate
	keys     keys
	patience time.Duration
	moved    atomic.Pointer[moved] // nil unless the server leads elsewhere for good
	forms    forms
	absence  absence
}

var _ store.Bucket = (*Bucket)(nil)

// New is a bucket below base. Its query goes with every request (pre-signed URLs), and its
// user and password are sent as basic authentication; neither appears in String or in an error. Redirects are
// followed, but none of these, no credential and no client certificate goes with them to another origin, and
// they never lead from https to http. Nothing is asked of the server yet.
func New(base Location, o Options) (*Bucket, error) {
	o.Connections, o.Patience = cmp.Or(o.Connections, 64), cmp.Or(o.Patience, 30*time.Second)
	keys, err := keysFor(base.url(), o.Credentials)
	if err != nil {
		return nil, err
	}
	u := *base.url()
	u.User = nil
	own, foreign := transports(o)
	return &Bucket{base: &u, own: own, foreign: foreign, keys: keys, patience: o.Patience}, nil
}

// transports are the ways to the base's origin and to all others.
func transports(o Options) (own, foreign *http.Transport) {
	if o.TLS == nil {
		o.TLS = new(tls.Config)
	}
	o.TLS = o.TLS.Clone()
	o.TLS.MinVersion = max(o.TLS.MinVersion, tls.VersionTLS12)
	own = transfer.Transport(o.Connections, o.Patience, o.TLS)
	o.TLS = o.TLS.Clone()
	o.TLS.Certificates, o.TLS.GetClientCertificate = nil, nil
	foreign = transfer.Transport(o.Connections, o.Patience, o.TLS)
	return own, foreign
}

// String implements store.Reader.
func (b *Bucket) String() string { return public(b.base) }

// url is the address of an object.
func (b *Bucket) url(name string) *url.URL { return below(b.base, name) }

func below(base *url.URL, name string) *url.URL { return hide(base).Join(name).url() }

func escaped(name string) string { return (&url.URL{Path: name}).EscapedPath() }

// Read implements store.Reader.
func (b *Bucket) Read(ctx context.Context, name string, dst []byte, limit int64) (out []byte, err error) {
	err = b.do(ctx, http.MethodGet, name, nil, func(in transfer.Incoming) error {
		out, err = in.Object(dst, limit)
		return err
	})
	return out, err
}

// Stream implements store.Streamer.
func (b *Bucket) Stream(ctx context.Context, name string, limit int64, use func(io.Reader) error) error {
	return b.do(ctx, http.MethodGet, name, nil, func(in transfer.Incoming) error { return in.Stream(limit, use) })
}

// Stat implements store.Reader. The word of a server that has every chunk it is asked for is ErrNoAbsence.
func (b *Bucket) Stat(ctx context.Context, name string) (size int64, err error) {
	size, err = b.head(ctx, name)
	if err == nil || errors.Is(err, store.ErrNoSize) {
		if hidden := b.checkAbsence(ctx, name); hidden != nil {
			return 0, hidden
		}
	}
	return size, err
}

// head asks for the size of an object. A server that refuses HEAD is asked for the object, of which the head will do.
func (b *Bucket) head(ctx context.Context, name string) (size int64, err error) {
	take := func(in transfer.Incoming) error {
		size, err = transfer.Size(in.Answer)
		return err
	}
	err = b.do(ctx, http.MethodHead, name, nil, take)
	if errors.Is(err, errHead) {
		err = b.do(ctx, http.MethodGet, name, nil, take)
	}
	return size, err
}
