package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
)

// Address is an address to listen on: tcp:HOST:PORT or unix:PATH.
type Address struct {
	Network string // "tcp" or "unix"
	At      string // HOST:PORT or PATH
}

func (a Address) String() string { return a.Network + ":" + a.At }

var errAddress = errors.New("want unix:PATH or tcp:HOST:PORT")

// ParseAddress parses an address, and checks all that can be checked without listening.
func ParseAddress(text string) (Address, error) {
	network, at, _ := strings.Cut(text, ":")
	a := Address{network, at}
	switch network {
	case "unix":
		if at == "" {
			return a, errAddress
		}
		if at[0] == '@' {
			return a, errors.New("an abstract socket has no permissions, and no NBD URI names it; " +
				"want a path (./@… for a file of that name)")
		}
		return a, checkSocketPath(at)
	case "tcp":
		_, port, err := net.SplitHostPort(at)
		if err != nil || port == "" {
			return a, errAddress
		}
		_, err = net.LookupPort("tcp", port)
		return a, err
	}
	return a, errAddress
}

// checkSocketPath returns an error if the path is too long for a unix socket. The kernel says only "invalid argument".
func checkSocketPath(path string) error {
	const maxPath = len(syscall.RawSockaddrUnix{}.Path) - 1
	if len(path) > maxPath {
		return fmt.Errorf("the path of a unix socket has at most %d bytes, this one has %d", maxPath, len(path))
	}
	return nil
}

// listenTCP listens on the address families of HOST. A numeric address has one family, a name those
// of all its addresses, and an empty HOST both.
func listenTCP(ctx context.Context, at string) ([]net.Listener, error) {
	host, port, err := net.SplitHostPort(at)
	if err != nil {
		return nil, err
	}
	if host == "" {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", at)
		if err != nil {
			return nil, err
		}
		return []net.Listener{l}, nil
	}
	ips, err := lookUpHost(ctx, host)
	if err != nil {
		return nil, err
	}
	const tries = 10 // to find a port that is free in both families
	for try := 1; ; try++ {
		listeners, err := listenOnEach(ctx, ips, port)
		if port != "0" || try == tries || !errors.Is(err, syscall.EADDRINUSE) {
			return listeners, err
		}
	}
}

// lookUpHost returns the addresses of a host, IPv4 first. Localhost has both loopback addresses
// (RFC 6761), although many /etc/hosts files have only one.
func lookUpHost(ctx context.Context, host string) ([]netip.Addr, error) {
	if strings.EqualFold(host, "localhost") {
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, nil
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip.Unmap()}, nil
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	for i := range ips {
		ips[i] = ips[i].Unmap()
	}
	slices.SortFunc(ips, netip.Addr.Compare)
	return slices.Compact(ips), nil
}

// listenOnEach listens on one port of all addresses. It omits addresses that this machine does not
// have. If it has none of them, that is an error.
func listenOnEach(ctx context.Context, ips []netip.Addr, port string) ([]net.Listener, error) {
	var listeners []net.Listener
	var absent error
	for _, ip := range ips {
		network := "tcp4"
		if ip.Is6() {
			network = "tcp6"
		}
		l, err := new(net.ListenConfig).Listen(ctx, network, net.JoinHostPort(ip.String(), port))
		switch {
		case errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT):
			absent = err
			continue
		case err != nil:
			CloseAll(listeners)
			return nil, err
		}
		listeners = append(listeners, l)
		_, port, _ = net.SplitHostPort(l.Addr().String()) // the address of a listener has a port
	}
	if len(listeners) == 0 {
		return nil, absent
	}
	return listeners, nil
}

// ReachesOthers reports whether other machines may connect to a listener's address.
func ReachesOthers(at net.Addr) bool {
	tcp, is := at.(*net.TCPAddr)
	return is && !tcp.IP.IsLoopback()
}

// HasPath reports whether the address of a unix socket is a file. An inherited socket may be
// abstract or have no name.
func HasPath(at net.Addr) bool { return at.String() != "" && at.String()[0] != '@' }
