package nbd

import (
	"net"
	"net/url"
	"path/filepath"
	"strings"
)

// URI returns the URI of an export of a server at an address, as in NetworkBlockDevice/nbd, doc/uri.md. It returns "" for
// a unix socket without a path, which no URI can name. tls says that clients must use TLS.
func URI(at net.Addr, export string, tls bool) string {
	scheme := "nbd"
	if tls {
		scheme = "nbds"
	}
	if at.Network() != "unix" {
		host := url.URL{Host: at.String()}
		return scheme + ":" + host.String() + "/" + escapeURI(export)
	}
	path := at.String()
	if path == "" || path[0] == '@' {
		return ""
	}
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	return scheme + "+unix:///" + escapeURI(export) + "?socket=" + escapeURI(path)
}

// escapeURI escapes the characters with a meaning in any part of a URI, except the slash. Clients differ in the characters
// that they take for separators, and do not take + for a space.
func escapeURI(text string) string {
	return strings.NewReplacer("+", "%20", "%2F", "/").Replace(url.QueryEscape(text))
}
