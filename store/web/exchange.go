package web

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"cairn/internal/transfer"
	"cairn/store"
)

const (
	maxRedirects = 5
	pageBytes    = 4 << 10         // limits the bytes read of the body of a refusal or redirect
	pagePatience = 2 * time.Second // limits the time to read that body
)

// message is a request without credentials.
type message struct {
	method string
	url    *url.URL
	name   string // of the object; "" for a directory
	body   []byte // of PUT
}

// reads reports whether the message changes nothing on the server.
func (m message) reads() bool { return m.method == http.MethodGet || m.method == http.MethodHead }

// use reads a successful answer.
type use func(in transfer.Incoming) error

func ignore(transfer.Incoming) error { return nil }

// do sends a request for an object and calls use with a successful answer. Every error names the
// object.
func (b *Bucket) do(ctx context.Context, method, name string, body []byte, use use) error {
	if err := store.CheckName(name); err != nil {
		return err
	}
	m := message{method, b.url(name), name, body}
	return named(ctx, m.url, b.exchange(ctx, m, use))
}

// named adds the object's URL to an error, and replaces the error if ctx has ended.
func named(ctx context.Context, u *url.URL, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return fmt.Errorf("%s: %w", public(u), err)
}

func (b *Bucket) exchange(ctx context.Context, m message, use use) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	answer, err := b.follow(ctx, m, cancel)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if err = check(m.method, answer); err == nil {
		b.forms.have(m.name)
		err = use(transfer.Incoming{Answer: answer, Patience: b.patience, Abort: cancel})
	} else {
		err = b.explain(m, answer, err)
	}
	if errors.Is(err, store.ErrUnavailable) {
		b.moved.Store(nil)
	}
	return b.atHand(m.url, answer.Request.URL, err)
}

// follow sends a message and follows redirects.
func (b *Bucket) follow(ctx context.Context, m message, abort func(error)) (*http.Response, error) {
	if answer := b.shortcut(ctx, m, abort); answer != nil {
		return answer, nil
	}
	return b.walk(ctx, m, chain{start: m.url, home: true, lasting: m.reads()}, abort)
}

// walk sends a message and follows redirects from the state of a chain. Only the origin of the base
// receives credentials, and only while the chain has not left it: a redirect back to it gets none.
func (b *Bucket) walk(ctx context.Context, m message, c chain, abort func(error)) (*http.Response, error) {
	for range maxRedirects + 1 {
		answer, err := b.send(ctx, m, c.home, abort)
		if err != nil {
			return nil, b.atHand(c.start, m.url, err)
		}
		if !redirects(answer.StatusCode) {
			if answer.StatusCode == http.StatusOK && c.moved != nil {
				b.moved.Store(c.moved)
			}
			return answer, nil
		}
		b.drop(answer)
		if m.url, err = m.next(answer); err != nil {
			return nil, err
		}
		c.home = c.home && origin(m.url) == origin(b.base)
		c.step(m, answer.StatusCode)
	}
	return nil, fmt.Errorf("%w: more than %d in a row", errRedirect, maxRedirects)
}

// drop discards an answer whose body is not needed.
func (b *Bucket) drop(answer *http.Response) {
	b.page(answer)
	_ = answer.Body.Close()
}

// errRedirect is wrapped by errors about redirects that are not followed.
var errRedirect = errors.New("redirect refused")

func redirects(code int) bool {
	switch code {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// next returns the target of a redirect, without its user, password and fragment.
func (m message) next(answer *http.Response) (*url.URL, error) {
	location := answer.Header.Get("Location")
	to, err := m.url.Parse(location)
	if location == "" || err != nil || to.Host == "" {
		return nil, fmt.Errorf("%w: %s leads to no URL", errRedirect, statusText(answer.StatusCode))
	}
	to.User, to.Fragment, to.RawFragment = nil, "", ""
	switch {
	case !m.reads():
		return nil, fmt.Errorf("%w: a write goes to the server that the location names, and to no other (it is sent to %s)",
			errRedirect, origin(to))
	case to.Scheme != "https" && (to.Scheme != "http" || m.url.Scheme == "https"):
		return nil, fmt.Errorf("%w: from %s to %s", errRedirect, m.url.Scheme, origin(to))
	}
	return to, nil
}

// atHand adds to an error the origin that redirects led to, and a note if credentials were withheld
// there.
func (b *Bucket) atHand(start, at *url.URL, err error) error {
	if err == nil {
		return nil
	}
	if origin(start) != origin(at) {
		err = fmt.Errorf("redirected to %s: %w", origin(at), err)
	}
	if !errors.Is(err, store.ErrDenied) {
		return err
	}
	switch {
	case b.keys.withheld:
		return fmt.Errorf("%w (credentials are not sent over plain http)", err)
	case origin(start) != origin(at) && len(b.keys.all) > 0:
		return fmt.Errorf("%w (credentials are sent to %s only)", err, origin(start))
	}
	return err
}

// send sends a message. If the server answers 401 and the credentials' files have changed, it sends
// the message once more.
func (b *Bucket) send(ctx context.Context, m message, home bool, abort func(error)) (*http.Response, error) {
	if !home {
		return b.trip(ctx, b.foreign, m, nil, abort)
	}
	proof := b.keys.header()
	answer, err := b.trip(ctx, b.own, m, proof, abort)
	if err != nil || answer.StatusCode != http.StatusUnauthorized {
		return answer, err
	}
	fresh, err := b.keys.reread()
	if err == nil && equal(proof, fresh) {
		return answer, nil
	}
	b.drop(answer)
	if err != nil {
		return nil, fmt.Errorf("%w, and credentials cannot be read again: %w", ErrUnauthorized, err)
	}
	return b.trip(ctx, b.own, m, fresh, abort)
}

// trip sends one request and returns its answer.
func (b *Bucket) trip(ctx context.Context, by http.RoundTripper, m message, proof http.Header, abort func(error)) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, m.method, m.url.String(), http.NoBody)
	if err != nil {
		return nil, cause(err)
	}
	request.Header.Set("User-Agent", "cairn")
	request.Header.Set("Accept-Encoding", "identity")
	for name, values := range proof {
		request.Header[name] = values
	}
	stop := b.attach(request, m.body, abort)
	answer, err := by.RoundTrip(request)
	stop()
	switch {
	case err == nil:
		return answer, nil
	case errors.Is(context.Cause(ctx), transfer.ErrStalled):
		err = transfer.ErrStalled
	}
	return nil, classify(err)
}

// attach sets the body of a request. The transport does not read body after stop returns.
func (b *Bucket) attach(request *http.Request, body []byte, abort func(error)) (stop func()) {
	if request.Method == http.MethodPut {
		request.Header.Set("Content-Type", "application/octet-stream")
		request.Header["Idempotency-Key"] = nil // not sent; allows a repeat if an idle connection broke
	}
	return transfer.Send(request, body, b.patience, abort)
}

// page reads the beginning of the body of a refusal or a redirect. Most of these bodies end within
// it, so the connection can be reused. A longer or slower body costs only the connection.
func (b *Bucket) page(answer *http.Response) []byte {
	late := time.AfterFunc(min(b.patience, pagePatience), func() { _ = answer.Body.Close() })
	defer late.Stop()
	page, _ := io.ReadAll(io.LimitReader(answer.Body, pageBytes)) // a partial page is enough
	return page
}

// origin returns the scheme, host and port of a URL.
func origin(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return u.Scheme + "://" + hostPort(u.Hostname(), port)
}

func hostPort(host, port string) string {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + port
}
