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

// Form parses the text of a credential into header fields. Its errors do not quote the text.
type Form func(text string) (http.Header, error)

// Credential authenticates the client to a server. It is sent to its host or, without one, to every
// server that a location names, and never to the target of a redirect to another origin. It is sent
// only over https, except to the loopback host: an eavesdropper could reuse it. Credential is safe
// for concurrent use.
type Credential struct {
	host  string // host or host:port; "" means all hosts
	fixed http.Header
	file  *rotate.Files[http.Header] // nil if fixed is used
}

// FromText returns a credential that does not change. The host may have a port, as in the location;
// "" means all hosts.
func FromText(form Form, host, text string) (*Credential, error) {
	fixed, err := form(text)
	if err != nil {
		return nil, err
	}
	return &Credential{host: host, fixed: fixed}, nil
}

// FromFile returns a credential read from a file with r; a nil r means a new reader. The file is
// read again after it has changed, and after the server has refused the credential. While the file
// cannot be read, the previous content is sent.
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

// String returns a fixed text, so that the credential cannot be logged.
func (c *Credential) String() string { return "a credential" }

// GoString returns String, for the same reason.
func (c *Credential) GoString() string { return c.String() }

// Bearer parses a bearer token (RFC 6750). A trailing line end is ignored.
func Bearer(text string) (http.Header, error) {
	token := strings.TrimRight(text, "\r\n")
	if token == "" || strings.ContainsFunc(token, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return nil, errors.New("it is not a token: one line of ASCII without spaces")
	}
	return http.Header{"Authorization": {"Bearer " + token}}, nil
}

// Basic parses USER:PASSWORD on one line.
func Basic(text string) (http.Header, error) {
	pair := strings.TrimRight(text, "\r\n")
	if !strings.Contains(pair, ":") || strings.ContainsFunc(pair, isControl) {
		return nil, errors.New("it is not USER:PASSWORD on one line")
	}
	return http.Header{"Authorization": {"Basic " + base64.StdEncoding.EncodeToString([]byte(pair))}}, nil
}

// Headers parses header fields, one NAME: VALUE per line. It refuses the fields that frame a
// message, such as Content-Length.
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
			return nil, fmt.Errorf("line %d: %s may not be set", n, name)
		}
		header[name] = append(header[name], value)
	}
	if n == 0 || len(header) == 0 {
		return nil, errors.New("it holds no header field")
	}
	return header, nil
}

// reserved lists the fields that only the transport may set.
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

// keys holds the credentials for one base, the ones for all hosts first.
type keys struct {
	all      []*Credential
	withheld bool // credentials were left out because the base is not https
}

// keysFor returns the credentials for a base. The user and password of the base's URL come last and
// override the others. They are sent over http too, since the user wrote them for this server.
func keysFor(base *url.URL, all []*Credential) (k keys, err error) {
	open := base.Scheme != "https" && !isLoopback(base.Hostname())
	for _, c := range all {
		switch {
		case c.host != "" && !c.appliesTo(base):
		case open && c.host != "":
			return keys{}, fmt.Errorf("credentials for %s are not sent over plain http, where others could read them", c.host)
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

func (c *Credential) appliesTo(base *url.URL) bool {
	return originOf(&url.URL{Scheme: base.Scheme, Host: c.host}) == originOf(base)
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}

// authHeader returns the fields of all credentials, later ones overriding earlier ones. It ignores
// read errors and uses the previous content of the file; rereadFiles reports them.
func (k keys) authHeader() http.Header {
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

// rereadFiles reads the files again and returns the fields as authHeader does.
func (k keys) rereadFiles() (http.Header, error) {
	for _, c := range k.all {
		if c.file == nil {
			continue
		}
		if _, err := c.file.Reread(); err != nil {
			return nil, err
		}
	}
	return k.authHeader(), nil
}
