package web

import (
	"context"
	"net/http"
	"net/url"
	"strings"
)

// moved is where everything below the base lies, as a redirect for good has told (RFC 9110 §15.4.2, §15.4.9).
type moved struct {
	base *url.URL // takes the place of the Bucket's
	home bool     // it is the base's own origin, and the way there did not leave that
}

// chain is how redirects have led a message so far.
type chain struct {
	start   *url.URL
	home    bool   // it has not left the origin of the base
	lasting bool   // all redirects are for good
	moved   *moved // where the last one of those led; nil when it moved this object alone
}

// step notes a redirect, to m's URL.
func (c *chain) step(m message, code int) {
	c.lasting = c.lasting && (code == http.StatusMovedPermanently || code == http.StatusPermanentRedirect)
	if !c.lasting {
		return
	}
	c.moved = nil
	path, is := strings.CutSuffix(m.url.EscapedPath(), "/"+escaped(m.name))
	if !is || m.url.RawQuery != "" && m.url.RawQuery != c.start.RawQuery { // a query of its own may sign one object
		return
	}
	base := *m.url
	base.RawPath = path
	base.Path, _ = url.PathUnescape(path) // a part of what was well escaped is so too
	c.moved = &moved{&base, c.home}
}

// shortcut asks where the store has moved to, and returns the answer only if that has the object. Else the base is
// to be asked: it may lead elsewhere by now, and its word is what counts.
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
