// Package tlsfiles builds TLS configurations from files, for clients and for servers: the accepted
// authorities and the own certificate. It knows nothing of the protocol inside the connection.
package tlsfiles

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"time"

	"cairn/internal/rotate"
)

// Files holds the paths of a client's PEM files. The zero value accepts the system's authorities
// and sends no certificate.
type Files struct {
	CA   string // accepted authorities, instead of the system's
	Cert string // the client's certificate, followed by the chain to its authority
	Key  string // its unencrypted key; "" if Cert contains it
}

// Config returns a configuration from the files, read with r; a nil r means a new Reader. After the
// client's certificate and key have changed, the next connection uses the new ones. While they
// cannot be read, or do not fit together, the last certificate is used until it expires.
func (f Files) Config(r *rotate.Reader) (*tls.Config, error) {
	if r == nil {
		r = new(rotate.Reader)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.CA != "" {
		text, err := r.Text(f.CA)
		config.RootCAs = x509.NewCertPool()
		if err == nil && !config.RootCAs.AppendCertsFromPEM(text) {
			err = fmt.Errorf("%s holds no certificate in PEM form", f.CA)
		}
		if err != nil {
			return nil, fmt.Errorf("reading the authorities to trust: %w", err)
		}
	}
	if f.Cert == "" && f.Key != "" {
		return nil, fmt.Errorf("key %s has no certificate beside it", f.Key)
	}
	if f.Cert != "" {
		var err error
		if config.GetClientCertificate, err = showCertificate(r, f.Cert, cmp.Or(f.Key, f.Cert)); err != nil {
			return nil, fmt.Errorf("reading the client certificate: %w", err)
		}
	}
	return config, nil
}

// showCertificate returns a function that always returns the certificate, even if the server does
// not list its issuer. The server's error is then clearer than one about a missing certificate.
func showCertificate(r *rotate.Reader, cert, key string) (
	func(*tls.CertificateRequestInfo) (*tls.Certificate, error), error,
) {
	pair := func(texts [][]byte) (*tls.Certificate, error) {
		c, err := tls.X509KeyPair(texts[0], texts[1])
		if err != nil {
			return nil, fmt.Errorf("%s and its key %s: %w", cert, key, err)
		}
		return &c, nil
	}
	files, err := rotate.Open(r, pair, cert, key)
	if err != nil {
		return nil, err
	}
	return func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		c, err := files.Value()
		if err != nil && time.Now().After(c.Leaf.NotAfter) {
			return nil, fmt.Errorf("the client certificate has expired, and a new one cannot be read: %w", err)
		}
		return c, nil
	}, nil
}
