package transfer

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"slices"
	"syscall"
	"time"
)

// Scope is the part of the network in which an address is valid.
type Scope int

// The scopes.
const (
	Network   Scope = iota // a public or private network
	LinkLocal              // a link of this machine; clouds serve a machine's own keys there
	Loopback               // this machine
	Scopes                 // the number of scopes
)

func (s Scope) String() string { return [...]string{"network", "link-local", "loopback"}[s] }

// translated are the IPv6 networks whose addresses end with an IPv4 address: those of NAT64 (RFC 6052) and the
// IPv4-compatible ones.
var translated = []netip.Prefix{netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("::/96")}

// keyServers are the addresses of networks at which clouds serve a machine's own keys (AWS, Google, Alibaba, Oracle),
// besides the link-local one.
var keyServers = []netip.Addr{
	netip.MustParseAddr("fd00:ec2::254"), netip.MustParseAddr("fd20:ce::254"),
	netip.MustParseAddr("100.100.100.200"), netip.MustParseAddr("192.0.0.192"),
}

// ScopeOf returns the scope of an address. A connection to the unspecified address reaches this machine.
func ScopeOf(ip netip.Addr) Scope {
	switch ip = ip.Unmap().WithZone(""); {
	case ip.IsLoopback(), ip.IsUnspecified():
		return Loopback
	case ip.IsLinkLocalUnicast(), ip.IsLinkLocalMulticast(), ip.IsInterfaceLocalMulticast(), slices.Contains(keyServers, ip):
		return LinkLocal
	case slices.ContainsFunc(translated, func(p netip.Prefix) bool { return p.Contains(ip) }):
		text := ip.As16()
		return ScopeOf(netip.AddrFrom4([4]byte(text[12:])))
	}
	return Network
}

// ScopeError reports that a Guarded route refused an address.
type ScopeError struct{ Address netip.AddrPort }

func (e *ScopeError) Error() string {
	return fmt.Sprintf("%v is a %v address, to which a server elsewhere must not lead; if it is meant, make it the location",
		e.Address, ScopeOf(e.Address.Addr()))
}

// Route sends requests, through a proxy if the environment names one, else directly. It is an
// http.RoundTripper and safe for concurrent use.
type Route struct{ direct, proxied *http.Transport }

// NewRoute returns a route by two transports with the parameters of Transport.
func NewRoute(connections int, patience time.Duration, config *tls.Config) *Route {
	r := &Route{Transport(connections, patience, config), Transport(connections, patience, config)}
	r.direct.Proxy = nil
	return r
}

// NewGuardedRoute returns a route for requests to addresses that a server in the scope from has chosen,
// such as the targets of its redirects. It connects to no address of this machine or its links, except
// those of the same scope; other addresses are a *ScopeError. It checks the address of each connection,
// so that the name of the host does not matter. Behind a proxy, the check is the proxy's.
func NewGuardedRoute(from Scope, connections int, patience time.Duration, config *tls.Config) *Route {
	r := NewRoute(connections, patience, config)
	guard := func(_, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		if scope := ScopeOf(at.Addr()); scope != Network && scope != from {
			return &ScopeError{at}
		}
		return nil
	}
	r.direct.DialContext = (&net.Dialer{Timeout: patience, Control: guard}).DialContext
	return r
}

// RoundTrip implements http.RoundTripper.
func (r *Route) RoundTrip(request *http.Request) (*http.Response, error) {
	proxy, err := r.proxied.Proxy(request)
	if err != nil || proxy != nil {
		return r.proxied.RoundTrip(request) // which reports err
	}
	scope := new(Scope)
	ctx := context.WithValue(request.Context(), scopeKey{}, scope)
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
		if at, err := netip.ParseAddrPort(i.Conn.RemoteAddr().String()); err == nil {
			*scope = ScopeOf(at.Addr())
		}
	}})
	return r.direct.RoundTrip(request.WithContext(ctx))
}

type scopeKey struct{}

// ScopeOfAnswer returns the scope of the server that an answer of a Route comes from. It is Network
// behind a proxy.
func ScopeOfAnswer(answer *http.Response) Scope {
	if scope, ok := answer.Request.Context().Value(scopeKey{}).(*Scope); ok {
		return *scope
	}
	return Network
}
