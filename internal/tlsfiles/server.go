package tlsfiles

import (
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"cairn/internal/rotate"
)

// Server holds the paths of a server's PEM files.
type Server struct {
	Cert     string // the server's certificate, followed by the chain to its authority
	Key      string // its unencrypted key
	ClientCA string // authorities for client certificates, which are then required; "" requires none
}

// Config returns a configuration from the files, read with r. When they change, the next client
// gets a new configuration, and changed is called with nil. While they cannot be used, clients get
// the last configuration, and changed is called once with each new error.
func (s Server) Config(r *rotate.Reader, changed func(err error)) (*tls.Config, error) {
	paths := []string{s.Cert, s.Key}
	if s.ClientCA != "" {
		paths = append(paths, s.ClientCA)
	}
	files, err := rotate.Open(r, s.parseConfig, paths...)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate %s and its key %s: %w", s.Cert, s.Key, err)
	}
	files.Changed = changed
	current := func(*tls.ClientHelloInfo) (*tls.Config, error) {
		config, _ := files.Value()
		return config, nil
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: current}, nil
}

// parseConfig returns a configuration from the certificate, its key, and the authorities of clients.
func (s Server) parseConfig(texts [][]byte) (*tls.Config, error) {
	pair, err := tls.X509KeyPair(texts[0], texts[1])
	if err != nil {
		return nil, err
	}
	config := &tls.Config{
		Certificates:                []tls.Certificate{pair},
		MinVersion:                  tls.VersionTLS12,
		SessionTicketsDisabled:      true, // connections are few and long, and a resumed one is not verified again
		DynamicRecordSizingDisabled: true,
	}
	if len(texts) > 2 {
		authorities, err := parseAuthorities(texts[2])
		if err != nil {
			return nil, fmt.Errorf("the authorities of clients %s: %w", s.ClientCA, err)
		}
		requireClients(config, authorities)
	}
	return config, nil
}

// requireClients requires a client certificate of one of the authorities. If an authority has an
// RSA key, it limits the connection to TLS 1.2: in TLS 1.3, GnuTLS clients do not send such a
// certificate, because crypto/tls does not list PKCS #1 v1.5 among the accepted signatures.
func requireClients(config *tls.Config, authorities []*x509.Certificate) {
	config.ClientAuth = tls.RequireAndVerifyClientCert
	config.ClientCAs = x509.NewCertPool()
	for _, a := range authorities {
		config.ClientCAs.AddCert(a)
		if _, is := a.PublicKey.(*rsa.PublicKey); is {
			config.MaxVersion = tls.VersionTLS12
		}
	}
}

func parseAuthorities(text []byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, errors.New("there is no certificate in it")
	}
	return all, nil
}
