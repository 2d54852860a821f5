package transfer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"

	"golang.org/x/net/http/httpproxy"

	"cairn/store"
)

// ErrProxy reports that a proxy, and not the server, refused the request or cannot be reached.
var ErrProxy = errors.New("the proxy")

// proxyError wraps an error of a proxy. It is an ErrProxy.
type proxyError struct{ err error }

func (e proxyError) Error() string   { return e.err.Error() }
func (e proxyError) Unwrap() []error { return []error{ErrProxy, e.err} }

// DeniedByProxy returns a store.ErrDenied of a proxy.
func DeniedByProxy(why string) error {
	return proxyError{fmt.Errorf("%w by the proxy: %s", store.ErrDenied, why)}
}

// Unavailable returns the error for a request without an answer. It is a *store.UnavailableError,
// except that a proxy's refusal is final.
func Unavailable(err error) error {
	op, is := errors.AsType[*net.OpError](err)
	switch {
	case errors.Is(err, ErrProxy): // from checkConnect
		return err
	case is && op.Op == "socks connect" && strings.Contains(op.Err.Error(), "authentication"):
		return DeniedByProxy(op.Err.Error())
	case is && (op.Op == "proxyconnect" || op.Op == "socks connect"):
		return &store.UnavailableError{Err: proxyError{err}}
	}
	return &store.UnavailableError{Err: err}
}

// checkConnect returns a store.ErrDenied if a proxy refuses the client (407, 403). Other answers
// mean that the proxy cannot reach the server.
func checkConnect(_ context.Context, proxy *url.URL, _ *http.Request, answer *http.Response) error {
	switch answer.StatusCode {
	case http.StatusProxyAuthRequired, http.StatusForbidden:
		return proxyError{fmt.Errorf("%w by the proxy %s: %d %s", store.ErrDenied, proxy.Host,
			answer.StatusCode, http.StatusText(answer.StatusCode))}
	}
	return nil
}

// proxyFromEnvironment returns a function that finds the proxy of a request in the environment. It uses
// HTTPS_PROXY or HTTP_PROXY by the request's scheme, else ALL_PROXY, which net/http does not
// support. Hosts in NO_PROXY have no proxy. The names may be in lower case.
func proxyFromEnvironment() func(*http.Request) (*url.URL, error) {
	c := httpproxy.FromEnvironment()
	all := cmp.Or(os.Getenv("ALL_PROXY"), os.Getenv("all_proxy"))
	c.HTTPSProxy = cmp.Or(c.HTTPSProxy, all)
	if !c.CGI { // under CGI a web client could have set HTTP_PROXY
		c.HTTPProxy = cmp.Or(c.HTTPProxy, all)
	}
	find := c.ProxyFunc()
	return func(r *http.Request) (*url.URL, error) {
		proxy, err := find(r.URL)
		if err != nil {
			return nil, proxyError{errors.New("HTTP_PROXY, HTTPS_PROXY or ALL_PROXY is not the URL of a proxy")}
		}
		if proxy == nil {
			return nil, nil
		}
		if proxy.Scheme == "socks" { // the spelling of desktop environments
			proxy.Scheme = "socks5"
		}
		if !slices.Contains([]string{"http", "https", "socks5", "socks5h"}, proxy.Scheme) {
			return nil, proxyError{fmt.Errorf("a proxy is http, https, socks5 or socks5h, and not %q: %w", proxy.Scheme, errors.ErrUnsupported)}
		}
		return proxy, nil
	}
}
