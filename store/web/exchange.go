package web

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
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
	span   string // the field Range of a GET; "" for the whole object
}

// isRead reports whether the message changes nothing on the server.
func (m message) isRead() bool { return m.method == http.MethodGet || m.method == http.MethodHead }

// useFunc reads a successful answer, and returns the error of the request.
type useFunc func(in transfer.Incoming) error

func ignoreAnswer(transfer.Incoming) error { return nil }

// requestObject sends a message to the URL of its object and calls use with a successful answer.
// Every error names the object.
func (b *Bucket) requestObject(ctx context.Context, m message, use useFunc) error {
	if err := store.CheckName(m.name); err != nil {
		return err
	}
	m.url = b.objectURL(m.name)
	return addURL(ctx, m.url, b.doMessage(ctx, m, use))
}

// addURL adds the object's URL to an error, and replaces the error if ctx has ended.
func addURL(ctx context.Context, u *url.URL, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return fmt.Errorf("%s: %w", publicURL(u), err)
}

// doMessage sends a message, checks the answer's status, and calls use if that is success.
func (b *Bucket) doMessage(ctx context.Context, m message, use useFunc) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var err error
	answer := b.tryMoved(ctx, m, cancel)
	if answer == nil {
		c := redirectChain{start: m.url, sameOrigin: true, permanent: m.isRead()}
		answer, err = b.followRedirects(ctx, m, c, cancel)
	}
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if err = checkStatus(m, answer); err == nil {
		b.forms.markPresent(m.name)
		err = use(transfer.Incoming{Answer: answer, Patience: b.patience, Abort: cancel})
	} else {
		err = b.explainRefusal(m, answer, err)
	}
	if errors.Is(err, store.ErrUnavailable) {
		b.moved.Store(nil)
	}
	return b.addOrigin(m.url, answer.Request.URL, err)
}

// followRedirects sends a message and follows redirects from the state of a chain. Only the origin
// of the base receives credentials, and only while the chain has not left it: a redirect back to it
// gets none.
func (b *Bucket) followRedirects(ctx context.Context, m message, c redirectChain, abort func(error)) (*http.Response, error) {
	for range maxRedirects + 1 {
		answer, err := b.sendMessage(ctx, m, c, abort)
		if err != nil {
			return nil, b.addOrigin(c.start, m.url, err)
		}
		if !isRedirect(answer.StatusCode) {
			if m.hasObject(answer) && c.moved != nil {
				b.moved.Store(c.moved)
			}
			return answer, nil
		}
		b.discardAnswer(answer)
		c.from = transfer.ScopeOfAnswer(answer)
		if m.url, err = m.redirectTarget(answer); err != nil {
			return nil, err
		}
		c.sameOrigin = c.sameOrigin && originOf(m.url) == originOf(b.base)
		c.addRedirect(m, answer.StatusCode)
	}
	return nil, fmt.Errorf("%w: more than %d in a row", errRedirect, maxRedirects)
}

// discardAnswer discards an answer whose body is not needed.
func (b *Bucket) discardAnswer(answer *http.Response) {
	b.readPage(answer)
	_ = answer.Body.Close()
}

// errRedirect is wrapped by errors about redirects that are not followed.
var errRedirect = errors.New("redirect refused")

func isRedirect(code int) bool {
	switch code {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// redirectTarget returns the target of a redirect, without its user, password and fragment.
func (m message) redirectTarget(answer *http.Response) (*url.URL, error) {
	location := answer.Header.Get("Location")
	to, err := m.url.Parse(location)
	if location == "" || err != nil || to.Host == "" {
		return nil, fmt.Errorf("%w: %s leads to no URL", errRedirect, statusText(answer.StatusCode))
	}
	to.User, to.Fragment, to.RawFragment = nil, "", ""
	switch {
	case !m.isRead():
		return nil, fmt.Errorf("%w: a write goes to the server that the location names, and to no other (it is sent to %s)",
			errRedirect, originOf(to))
	case to.Scheme != "https" && (to.Scheme != "http" || m.url.Scheme == "https"):
		return nil, fmt.Errorf("%w: from %s to %s", errRedirect, m.url.Scheme, originOf(to))
	}
	return to, nil
}

// addOrigin adds to an error the origin that redirects led to, and a note if credentials were
// withheld there.
func (b *Bucket) addOrigin(start, at *url.URL, err error) error {
	if err == nil {
		return nil
	}
	if originOf(start) != originOf(at) {
		err = fmt.Errorf("redirected to %s: %w", originOf(at), err)
	}
	if !errors.Is(err, store.ErrDenied) {
		return err
	}
	switch {
	case b.keys.withheld:
		return fmt.Errorf("%w (credentials are not sent over plain http)", err)
	case originOf(start) != originOf(at) && len(b.keys.all) > 0:
		return fmt.Errorf("%w (credentials are sent to %s only)", err, originOf(start))
	}
	return err
}

// sendMessage sends a message, with the credentials if the chain has not left the base's origin. If the
// server answers 401 and the credentials' files have changed, it sends the message once more.
func (b *Bucket) sendMessage(ctx context.Context, m message, c redirectChain, abort func(error)) (*http.Response, error) {
	if !c.sameOrigin {
		return b.roundTrip(ctx, b.foreign[c.from], m, nil, abort)
	}
	auth := b.keys.authHeader()
	answer, err := b.roundTrip(ctx, b.own, m, auth, abort)
	if err != nil || answer.StatusCode != http.StatusUnauthorized {
		return answer, err
	}
	fresh, err := b.keys.rereadFiles()
	if err == nil && maps.EqualFunc(auth, fresh, slices.Equal[[]string]) {
		return answer, nil
	}
	b.discardAnswer(answer)
	if err != nil {
		return nil, fmt.Errorf("%w, and credentials cannot be read again: %w", ErrUnauthorized, err)
	}
	return b.roundTrip(ctx, b.own, m, fresh, abort)
}

// roundTrip sends one request and returns its answer.
func (b *Bucket) roundTrip(ctx context.Context, by http.RoundTripper, m message, auth http.Header, abort func(error)) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, m.method, m.url.String(), http.NoBody)
	if err != nil {
		return nil, unwrapURLError(err)
	}
	request.Header.Set("User-Agent", "cairn")
	request.Header.Set("Accept-Encoding", "identity")
	if m.span != "" {
		request.Header.Set("Range", m.span)
	}
	for name, values := range auth {
		request.Header[name] = values
	}
	if m.method == http.MethodPut {
		request.Header.Set("Content-Type", "application/octet-stream")
		request.Header["Idempotency-Key"] = nil // not sent; allows a repeat if an idle connection broke
	}
	stop := transfer.Send(request, m.body, b.patience, abort)
	answer, err := by.RoundTrip(request)
	stop() // the transport does not read the body afterwards
	switch {
	case err == nil:
		return answer, nil
	case errors.Is(context.Cause(ctx), transfer.ErrStalled):
		err = transfer.ErrStalled
	}
	return nil, transportError(err)
}

// readPage reads the beginning of the body of a refusal or a redirect. Most of these bodies end
// within it, so the connection can be reused. A longer or slower body costs only the connection.
func (b *Bucket) readPage(answer *http.Response) []byte {
	late := time.AfterFunc(min(b.patience, pagePatience), func() { _ = answer.Body.Close() })
	defer late.Stop()
	page, _ := io.ReadAll(io.LimitReader(answer.Body, pageBytes)) // a partial page is enough
	return page
}

// originOf returns the scheme, host and port of a URL.
func originOf(u *url.URL) string {
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
