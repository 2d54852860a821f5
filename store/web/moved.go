package web

import (
	"context"
	"net/http"
	"net/url"
	"strings"
)

// moved is the new location of the whole store after a permanent redirect (RFC 9110 §15.4.2,
// §15.4.9).
type moved struct {
	base *url.URL // replaces the Bucket's base
	home bool     // the base's own origin, reached without leaving that origin
}

// chain is the state of following redirects.
type chain struct {
	start   *url.URL
	home    bool   // the redirects have not left the origin of the base
	lasting bool   // all redirects are permanent
	moved   *moved // the target of the last permanent redirect; nil if it moved only this object
}

// step records a redirect to m's URL.
func (c *chain) step(m message, code int) {
	c.lasting = c.lasting && (code == http.StatusMovedPermanently || code == http.StatusPermanentRedirect)
	if !c.lasting {
		return
	}
	c.moved = nil
	path, is := strings.CutSuffix(m.url.EscapedPath(), "/"+escaped(m.name))
	if !is || m.url.RawQuery != "" && m.url.RawQuery != c.start.RawQuery { // a new query may sign a single object
		return
	}
	base := *m.url
	base.RawPath = path
	base.Path, _ = url.PathUnescape(path) // cannot fail: part of a valid escaped path
	c.moved = &moved{&base, c.home}
}

// shortcut sends m to the store's new location, and returns the answer only if that has the object.
// Otherwise it returns nil, and the caller asks the base, which is authoritative and may redirect
// elsewhere by now.
func (b *Bucket) shortcut(ctx context.Context, m message, abort func(error)) *http.Response {
	there := b.moved.Load()
	if there == nil || !m.reads() {
		return nil
	}
	c := chain{start: m.url, home: there.home}
	m.url = below(there.base, m.name)
	answer, err := b.walk(ctx, m, c, abort)
	switch {
	case err == nil && answer.StatusCode == http.StatusOK:
		return answer
	case err == nil:
		b.drop(answer)
	}
	if err != nil || answer.StatusCode != http.StatusNotFound {
		b.moved.CompareAndSwap(there, nil)
	}
	return nil
}
