package main

import (
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"github.com/spf13/cobra"

	"cairn/internal/rotate"
)

// security is the files of serve's TLS.
type security struct{ cert, key, clientCA string }

func (f *security) add(c *cobra.Command) {
	c.Flags().StringVar(&f.cert, "tls-cert", "", "`file` with the server's certificate, and those between it and its authority (PEM); makes TLS a must for clients")
	c.Flags().StringVar(&f.key, "tls-key", "", "`file` with the certificate's key (PEM)")
	c.Flags().StringVar(&f.clientCA, "tls-client-ca", "", "`file` with authorities (PEM), of which every client must have a certificate")
	check(c, func([]string) error {
		switch {
		case (f.cert == "") != (f.key == ""):
			return errors.New("--tls-cert and --tls-key belong together")
		case f.clientCA != "" && f.cert == "":
			return errors.New("--tls-client-ca wants --tls-cert and --tls-key")
		}
		return nil
	})
}

func (f *security) on() bool { return f.cert != "" }

// config is how the server speaks TLS, nil if it does not. The files are read again when they have changed; if they
// are no good then, what was read before stays.
func (f *security) config(files *rotate.Reader, log *slog.Logger) (*tls.Config, error) {
	if !f.on() {
		return nil, nil
	}
	c := &certificates{security: *f, log: log}
	paths := []string{f.cert, f.key}
	if f.clientCA != "" {
		paths = append(paths, f.clientCA)
	}
	var err error
	if c.files, err = rotate.Open(files, c.parse, paths...); err != nil {
		return nil, fmt.Errorf("reading the certificate %s and its key %s: %w", f.cert, f.key, err)
	}
	c.last, _ = c.files.Value()
	if info, err := os.Stat(f.key); err == nil && info.Mode().Perm()&0o077 != 0 && info.Mode().IsRegular() {
		say("warning: %s, the key for TLS, is open to others (mode %#o); 'chmod 600 %s' closes it", f.key, info.Mode().Perm(), f.key)
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.current(), nil },
	}, nil
}

// certificates are what the files hold, as far as it is of any use.
type certificates struct {
	security
	log   *slog.Logger
	files *rotate.Files[*tls.Config]

	mu      sync.Mutex // guards what follows
	last    *tls.Config
	trouble string // with the files as they are now, once it was logged
}

// current is the configuration for a client that comes now.
func (c *certificates) current() *tls.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	config, err := c.files.Value()
	switch {
	case err != nil && err.Error() != c.trouble:
		c.trouble = err.Error()
		c.log.Error("the new certificates are not used", "err", err)
	case err == nil && config != c.last:
		c.log.Info("the certificates were read again")
	}
	if err == nil {
		c.trouble = ""
	}
	c.last = config
	return config
}

// parse makes a configuration of the certificate, its key, and the authorities of clients.
func (c *certificates) parse(texts [][]byte) (*tls.Config, error) {
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
			return nil, fmt.Errorf("the authorities of clients %s: %w", c.clientCA, err)
		}
		requireClients(config, authorities)
	}
	return config, nil
}

// requireClients lets only clients in that have a certificate of one of the authorities. RSA holds it to TLS 1.2,
// see nbd.Server.
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
