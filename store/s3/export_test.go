package s3

import (
	"context"
	"net"
)

// DialTo returns options with which every connection goes to one address, whatever its host is.
func (o Options) DialTo(address string) Options {
	o.dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	return o
}
