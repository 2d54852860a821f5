package transfer_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"cairn/internal/transfer"
)

func TestScopeOf(t *testing.T) {
	for text, want := range map[string]transfer.Scope{
		"127.0.0.1": transfer.Loopback, "127.8.7.6": transfer.Loopback, "::1": transfer.Loopback,
		"::ffff:127.0.0.1": transfer.Loopback, "0.0.0.0": transfer.Loopback, "::": transfer.Loopback,
		"169.254.169.254": transfer.LinkLocal, "::ffff:169.254.169.254": transfer.LinkLocal, "fe80::1%eth0": transfer.LinkLocal,
		"64:ff9b::127.0.0.1": transfer.Loopback, "64:ff9b::a9fe:a9fe": transfer.LinkLocal, "::127.0.0.1": transfer.Loopback,
		"fd00:ec2::254": transfer.LinkLocal, "100.100.100.200": transfer.LinkLocal, "64:ff9b::198.51.100.1": transfer.Network,
		"224.0.0.1": transfer.LinkLocal, "ff02::1": transfer.LinkLocal,
		"10.0.0.1": transfer.Network, "172.16.0.1": transfer.Network, "192.168.0.1": transfer.Network, "fd00::1": transfer.Network,
		"198.51.100.1": transfer.Network, "2001:db8::1": transfer.Network,
	} {
		if got := transfer.ScopeOf(netip.MustParseAddr(text)); got != want {
			t.Errorf("ScopeOf(%s) = %v, want %v", text, got, want)
		}
	}
}

// serveCounting starts a server at an address, and counts its connections.
func serveCounting(t *testing.T, address string) (port string, connections *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Skipf("no address %s on this machine: %v", address, err)
	}
	connections = new(atomic.Int64)
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.NotFoundHandler(), ConnState: func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}}}
	s.Start()
	t.Cleanup(s.Close)
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port, connections
}

// get requests a URL, and returns the scope of the server that answers.
func get(t *testing.T, r *transfer.Route, url string) (transfer.Scope, error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := r.RoundTrip(request)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	return transfer.ScopeOfAnswer(answer), nil
}

// resolveNames answers DNS requests for A records of all names with an address.
func resolveNames(t *testing.T, address [4]byte) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	before := net.DefaultResolver
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", server.LocalAddr().String())
	}}
	t.Cleanup(func() { net.DefaultResolver = before; server.Close() })
	go func() {
		packet := make([]byte, 1<<10)
		for {
			n, from, err := server.ReadFrom(packet)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(packet[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			m.Response, m.Additionals = true, nil
			if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
				header := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1}
				m.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AResource{A: address}}}
			}
			reply, _ := m.Pack()
			_, _ = server.WriteTo(reply, from)
		}
	}()
}

// TestGuardedRoute: a guarded route opens no connection to this machine or its links, for any spelling of
// the address and for names that resolve to it, unless the redirect comes from the same scope.
func TestGuardedRoute(t *testing.T) {
	port, connections := serveCounting(t, "127.0.0.1:0")
	resolveNames(t, [4]byte{127, 0, 0, 1})
	routes := map[transfer.Scope]*transfer.Route{}
	for from := range transfer.Scopes {
		routes[from] = transfer.NewGuardedRoute(from, 1, time.Minute, nil)
	}
	for _, host := range []string{"127.0.0.1", "localhost", "0.0.0.0", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::]", "inner.example.com"} {
		for _, from := range []transfer.Scope{transfer.Network, transfer.LinkLocal} {
			_, err := get(t, routes[from], "http://"+host+":"+port+"/")
			if refused, is := errors.AsType[*transfer.ScopeError](err); !is || transfer.ScopeOf(refused.Address.Addr()) != transfer.Loopback {
				t.Errorf("%s from the scope %v: %v, want a ScopeError", host, from, err)
			}
		}
	}
	if n := connections.Load(); n > 0 {
		t.Errorf("%d connections were opened", n)
	}
	for _, host := range []string{"127.0.0.1", "inner.example.com"} {
		scope, err := get(t, routes[transfer.Loopback], "http://"+host+":"+port+"/")
		if err != nil || scope != transfer.Loopback {
			t.Errorf("%s from the same scope: %v", host, err)
		}
	}
	for _, from := range []transfer.Scope{transfer.Network, transfer.Loopback} {
		for _, host := range []string{"169.254.1.1", "[::ffff:169.254.1.1]", "[fe80::1%25lo]"} {
			_, err := get(t, routes[from], "http://"+host+"/latest/meta-data")
			if _, is := errors.AsType[*transfer.ScopeError](err); !is {
				t.Errorf("%s from the scope %v: %v, want a ScopeError", host, from, err)
			}
		}
	}
}

// TestGuardedRouteByProxy: the address of a proxy is not checked, and addresses behind it are the proxy's
// to check. Loopback addresses are not requested from a proxy.
func TestGuardedRouteByProxy(t *testing.T) {
	var asked atomic.Int64
	proxy := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer proxy.Close()
	t.Setenv("HTTP_PROXY", proxy.URL)
	t.Setenv("NO_PROXY", "")
	r := transfer.NewGuardedRoute(transfer.Network, 1, time.Minute, nil)
	for _, host := range []string{"store.example.com", "10.0.0.1", "169.254.1.1"} {
		scope, err := get(t, r, "http://"+host+"/")
		if err != nil || scope != transfer.Network {
			t.Errorf("%s behind a proxy: %v", host, err)
		}
	}
	if _, err := get(t, r, proxy.URL); !strings.Contains(fmt.Sprint(err), "loopback address") {
		t.Errorf("the proxy's own address, without the proxy: %v", err)
	}
	if n := asked.Load(); n != 3 {
		t.Errorf("the proxy got %d requests, want 3", n)
	}
}

// TestGuardedRouteToPrivateNetwork: private networks can be reached.
func TestGuardedRouteToPrivateNetwork(t *testing.T) {
	all, _ := net.InterfaceAddrs()
	for _, a := range all {
		own, err := netip.ParsePrefix(a.String())
		if err != nil || transfer.ScopeOf(own.Addr()) != transfer.Network {
			continue
		}
		host := own.Addr().String()
		port, _ := serveCounting(t, net.JoinHostPort(host, "0"))
		scope, err := get(t, transfer.NewGuardedRoute(transfer.Network, 1, time.Minute, nil), "http://"+net.JoinHostPort(host, port))
		if err != nil || scope != transfer.Network {
			t.Errorf("Get of %s = %v", host, err)
		}
	}
}
