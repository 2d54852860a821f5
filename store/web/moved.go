package web

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	"cairn/internal/transfer"
)

// moved is the new location of the whole store after a permanent redirect (RFC 9110 §15.4.2,
// §15.4.9).
type moved struct {
	base       *url.URL       // replaces the Bucket's base
	sameOrigin bool           // it is in the base's origin, and the redirects did not leave that
	from       transfer.Scope // of the server that redirected to it
}

// redirectChain is the state of following redirects.
type redirectChain struct {
	start      *url.URL
	sameOrigin bool           // the redirects have not left the origin of the base
	from       transfer.Scope // of the server that sent the last redirect
	permanent  bool           // all redirects are permanent
	moved      *moved         // the target of the last permanent redirect; nil if it moved only this object
}

// addRedirect records a redirect to m's URL.
func (c *redirectChain) addRedirect(m message, code int) {
	c.permanent = c.permanent && (code == http.StatusMovedPermanently || code == http.StatusPermanentRedirect)
	if !c.permanent {
		return
	}
	c.moved = nil
	path, is := strings.CutSuffix(m.url.EscapedPath(), "/"+escapePath(m.name))
	if !is || m.url.RawQuery != "" && m.url.RawQuery != c.start.RawQuery { // a new query may sign a single object
		return
	}
	base := *m.url
	base.RawPath = path
	base.Path, _ = url.PathUnescape(path) // cannot fail: part of a valid escaped path
	c.moved = &moved{&base, c.sameOrigin, c.from}
}

// tryMoved sends m to the store's new location, and returns the answer only if that has the object.
// Otherwise it returns nil, and the caller sends m to the base, which is authoritative and may
// redirect elsewhere by now.
func (b *Bucket) tryMoved(ctx context.Context, m message, abort func(error)) *http.Response {
	there := b.moved.Load()
	if there == nil || !m.isRead() {
		return nil
	}
	c := redirectChain{start: m.url, sameOrigin: there.sameOrigin, from: there.from}
	m.url = joinURL(there.base, m.name)
	answer, err := b.followRedirects(ctx, m, c, abort)
	switch {
	case err == nil && m.hasObject(answer):
		return answer
	case err == nil:
		b.discardAnswer(answer)
	}
	if err != nil || answer.StatusCode != http.StatusNotFound {
		b.moved.CompareAndSwap(there, nil)
	}
	return nil
}
