// Package web reads objects from any static web server over HTTP or HTTPS. It knows nothing of digests and
// never tries twice: see store.Retry.
package web

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"cairn/internal/transfer"
	"cairn/store"
)

// Options are the limits of a Reader. The zero value suits a wide-area network.
type Options struct {
	// Connections is how many there may be to one host, and so how many requests run at once; 0 is 64.
	Connections int
	// Patience is how long the server may take to accept a connection, to finish the TLS handshake, to begin
	// its answer, and to send each further 32 KiB of it; 0 is 30 s. There is no limit on a whole request.
	Patience time.Duration
	// TLS holds trust and client certificates; nil is the system's trust.
	TLS *tls.Config
}

const maxRedirects = 5

// Reader reads objects below a base URL. Safe for concurrent use.
type Reader struct {
	base     *url.URL
	client   *http.Client
	patience time.Duration
}

var _ store.Reader = (*Reader)(nil)

// New reads below base, an http or https URL. Its query goes with every request (pre-signed URLs), and its
// user and password are sent as basic authentication; neither appears in String or in an error. Nothing is
// asked of the server yet.
func New(base string, o Options) (*Reader, error) {
	u, err := url.Parse(base)
	if err != nil {
		return nil, fmt.Errorf("not a URL: %w", cause(err))
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("%s is not an http or https URL with a host", public(u))
	}
	if o.Connections == 0 {
		o.Connections = 64
	}
	if o.Patience == 0 {
		o.Patience = 30 * time.Second
	}
	client := &http.Client{Transport: transfer.Transport(o.Connections, o.Patience, o.TLS), CheckRedirect: checkRedirect}
	return &Reader{base: u, client: client, patience: o.Patience}, nil
}

// errRedirect is wrapped by errors about redirects that are not followed.
var errRedirect = errors.New("redirect refused")

func checkRedirect(req *http.Request, via []*http.Request) error {
	req.Header.Del("Referer") // it would hand our query, maybe a signature, to another server
	if len(via) > maxRedirects {
		return fmt.Errorf("%w: more than %d in a row", errRedirect, maxRedirects)
	}
	if req.URL.Scheme != "https" && via[len(via)-1].URL.Scheme == "https" {
		return fmt.Errorf("%w: from https to %s", errRedirect, req.URL.Scheme)
	}
	return nil
}

// String implements store.Reader.
func (r *Reader) String() string { return public(r.base) }

// public is a URL without what may be secret.
func public(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}).String()
}

// url is the address of an object.
func (r *Reader) url(name string) *url.URL {
	u := *r.base
	u.Path = strings.TrimSuffix(r.base.Path, "/") + "/" + name
	u.RawPath = strings.TrimSuffix(r.base.EscapedPath(), "/") + "/" + (&url.URL{Path: name}).EscapedPath()
	return &u
}

// Read implements store.Reader.
func (r *Reader) Read(ctx context.Context, name string, dst []byte, limit int64) (out []byte, err error) {
	err = r.do(ctx, http.MethodGet, name, func(answer *http.Response, abort func(error)) error {
		in := transfer.Incoming{Answer: answer, Patience: r.patience, Abort: abort}
		out, err = in.Body(dst, limit)
		return err
	})
	return out, err
}

// Stat implements store.Reader.
func (r *Reader) Stat(ctx context.Context, name string) (size int64, err error) {
	err = r.do(ctx, http.MethodHead, name, func(answer *http.Response, _ func(error)) error {
		if answer.ContentLength < 0 {
			return errors.New("the server does not tell the size")
		}
		size = answer.ContentLength
		return nil
	})
	return size, err
}

// do asks for an object and hands a good answer to use. It names the object in every error.
func (r *Reader) do(ctx context.Context, method, name string, use use) error {
	if err := store.CheckName(name); err != nil {
		return err
	}
	u := r.url(name)
	err := r.exchange(ctx, method, u.String(), use)
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return fmt.Errorf("%s: %w", public(u), err)
}

// use takes what it needs of an answer; abort ends the request when it takes too long.
type use func(answer *http.Response, abort func(error)) error

func (r *Reader) exchange(ctx context.Context, method, address string, use use) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	request, err := http.NewRequestWithContext(ctx, method, address, nil)
	if err != nil {
		return cause(err)
	}
	request.Header.Set("User-Agent", "cairn")
	answer, err := r.client.Do(request)
	if err != nil {
		return classify(cause(err))
	}
	defer answer.Body.Close()
	if err := checkAnswer(answer); err != nil {
		return err
	}
	return use(answer, cancel)
}

// cause takes off the *url.Error, which repeats the URL with its query.
func cause(err error) error {
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		return wrapped.Err
	}
	return err
}

// classify tells what a later attempt may mend from what it cannot.
func classify(err error) error {
	if _, untrusted := errors.AsType[*tls.CertificateVerificationError](err); untrusted {
		return err
	}
	if errors.Is(err, errRedirect) {
		return err
	}
	return &store.UnavailableError{Err: err}
}
