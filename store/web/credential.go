package web

import (
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"cairn/internal/rotate"
)

// Form says what the text of a credential means: it makes header fields of it. Its errors quote nothing.
type Form func(text string) (http.Header, error)

// Credential is what proves to a server who asks. It is sent to the host it is for, or, without one, to every
// server that a location names; never to where a redirect leads, and only over https, unless the server is this
// machine: who can listen could use it as well. Safe for concurrent use.
type Credential struct {
	host  string // host or host:port, "" for all
	fixed http.Header
	file  *rotate.Files[http.Header] // nil when it is fixed
}

// FromText is a credential that does not change. The host may have a port, as in the location; "" is all hosts.
func FromText(form Form, host, text string) (*Credential, error) {
	fixed, err := form(text)
	if err != nil {
		return nil, err
	}
	return &Credential{host: host, fixed: fixed}, nil
}

// FromFile is a credential that a file holds, read with a reader; nil is one of its own. The file is read again when the file has changed, and when the server
// does not take it any more; while it cannot be read, what it held before is sent.
func FromFile(r *rotate.Reader, form Form, host, path string) (*Credential, error) {
	parse := func(texts [][]byte) (http.Header, error) {
		header, err := form(string(texts[0]))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return header, nil
	}
	file, err := rotate.Open(r, parse, path)
	if err != nil {
		return nil, err
	}
	return &Credential{host: host, file: file}, nil
}

// String says nothing, lest it be logged.
func (c *Credential) String() string { return "a credential" }

// GoString is String.
func (c *Credential) GoString() string { return c.String() }

// Bearer is a token of RFC 6750. A line's end behind it is none of it.
func Bearer(text string) (http.Header, error) {
	token := strings.TrimRight(text, "\r\n")
	if token == "" || strings.ContainsFunc(token, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return nil, errors.New("it is not a token: one line of ASCII without spaces")
	}
	return http.Header{"Authorization": {"Bearer " + token}}, nil
}

// Basic is USER:PASSWORD on one line.
func Basic(text string) (http.Header, error) {
	pair := strings.TrimRight(text, "\r\n")
	if !strings.Contains(pair, ":") || strings.ContainsFunc(pair, isControl) {
		return nil, errors.New("it is not USER:PASSWORD on one line")
	}
	return http.Header{"Authorization": {"Basic " + base64.StdEncoding.EncodeToString([]byte(pair))}}, nil
}

// Headers are header fields, NAME: VALUE on a line each. Those that say how a message is sent are refused.
func Headers(text string) (http.Header, error) {
	header, n := http.Header{}, 0
	for line := range strings.Lines(text) {
		n++
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		name = http.CanonicalHeaderKey(name)
		if !ok || !isToken(name) || strings.ContainsFunc(value, isControl) {
			return nil, fmt.Errorf("line %d is not NAME: VALUE", n)
		}
		if slices.Contains(reserved, name) {
			return nil, fmt.Errorf("line %d: %s is not to be set", n, name)
		}
		header[name] = append(header[name], value)
	}
	if n == 0 || len(header) == 0 {
		return nil, errors.New("it holds no header field")
	}
	return header, nil
}

// reserved are fields that are the transport's.
var reserved = []string{
	"Accept-Encoding", "Connection", "Content-Encoding", "Content-Length", "Content-Range", "Expect", "Host",
	"Idempotency-Key", "Keep-Alive", "Proxy-Authorization", "Proxy-Connection", "Range", "Te", "Trailer",
	"Transfer-Encoding", "Upgrade",
}

func isControl(c rune) bool { return c < ' ' || c == 0x7f }

func isToken(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(c rune) bool {
		return c <= ' ' || c > '~' || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, c)
	})
}

// keys are the credentials for one base, those for all hosts first.
type keys struct {
	all      []*Credential
	withheld bool // there are more, but the base is not https
}

// keysFor picks the credentials for a base. What its URL says itself comes last and so counts most; it is sent
// over http too, since whoever wrote it said so of this very server.
func keysFor(base *url.URL, all []*Credential) (k keys, err error) {
	open := base.Scheme != "https" && !isLoopback(base.Hostname())
	for _, c := range all {
		switch {
		case c.host != "" && !c.isFor(base):
		case open && c.host != "":
			return keys{}, fmt.Errorf("credentials for %s are not sent over plain http: everybody on the way could use them", c.host)
		case open:
			k.withheld = true
		default:
			k.all = append(k.all, c)
		}
	}
	slices.SortStableFunc(k.all, func(a, b *Credential) int { return min(len(a.host), 1) - min(len(b.host), 1) })
	if base.User == nil {
		return k, nil
	}
	password, _ := base.User.Password()
	pair := base.User.Username() + ":" + password
	own := http.Header{"Authorization": {"Basic " + base64.StdEncoding.EncodeToString([]byte(pair))}}
	k.all, k.withheld = append(k.all, &Credential{fixed: own}), false
	return k, nil
}

func (c *Credential) isFor(base *url.URL) bool {
	return origin(&url.URL{Scheme: base.Scheme, Host: c.host}) == origin(base)
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}

// header is what all of them say. What cannot be read is what it was before: if that does not do, reread tells.
func (k keys) header() http.Header {
	header := http.Header{}
	for _, c := range k.all {
		now := c.fixed
		if c.file != nil {
			now, _ = c.file.Value()
		}
		maps.Copy(header, now)
	}
	return header
}

// reread is header of files that are read anew.
func (k keys) reread() (http.Header, error) {
	for _, c := range k.all {
		if c.file == nil {
			continue
		}
		if _, err := c.file.Reread(); err != nil {
			return nil, err
		}
	}
	return k.header(), nil
}

func equal(a, b http.Header) bool { return maps.EqualFunc(a, b, slices.Equal[[]string]) }
