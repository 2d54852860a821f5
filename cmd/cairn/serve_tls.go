package main

import (
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"
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
func (f *security) config(log *slog.Logger) (*tls.Config, error) {
	if !f.on() {
		return nil, nil
	}
	c := &certificates{security: *f, log: log}
	if err := c.load(); err != nil {
		return nil, err
	}
	if info, err := os.Stat(f.key); err == nil && info.Mode().Perm()&0o077 != 0 {
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
	log *slog.Logger

	mu     sync.Mutex // guards what follows
	config *tls.Config
	state  []fileState // of the files when they were read last, whatever came of it
}

// fileState tells a file from what it was before.
type fileState struct {
	modified time.Time
	size     int64
	info     fs.FileInfo
}

func (s fileState) same(other fileState) bool {
	return s.size == other.size && s.modified.Equal(other.modified) &&
		(s.info == nil) == (other.info == nil) && (s.info == nil || os.SameFile(s.info, other.info))
}

func stateOf(path string) fileState {
	info, err := os.Stat(path)
	if err != nil {
		return fileState{}
	}
	return fileState{info.ModTime(), info.Size(), info}
}

func (c *certificates) states() []fileState {
	states := []fileState{stateOf(c.cert), stateOf(c.key)}
	if c.clientCA != "" {
		states = append(states, stateOf(c.clientCA))
	}
	return states
}

// current is the configuration for a client that comes now.
func (c *certificates) current() *tls.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.changed() {
		return c.config
	}
	if err := c.load(); err != nil {
		c.log.Error("the new certificates are not used", "err", err)
	} else {
		c.log.Info("the certificates were read again")
	}
	return c.config
}

func (c *certificates) changed() bool {
	for i, s := range c.states() {
		if !s.same(c.state[i]) {
			return true
		}
	}
	return false
}

// load reads the files. What they were is noted first: what changes while they are read is read again.
func (c *certificates) load() error {
	c.state = c.states()
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return fmt.Errorf("reading the certificate %s and its key %s: %w", c.cert, c.key, err)
	}
	config := &tls.Config{
		Certificates:                []tls.Certificate{pair},
		MinVersion:                  tls.VersionTLS12,
		SessionTicketsDisabled:      true, // connections are few and long, and whoever resumes is not looked at again
		DynamicRecordSizingDisabled: true,
	}
	if c.clientCA != "" {
		authorities, err := readAuthorities(c.clientCA)
		if err != nil {
			return fmt.Errorf("reading the authorities of clients %s: %w", c.clientCA, err)
		}
		requireClients(config, authorities)
	}
	c.config = config
	return nil
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

func readAuthorities(path string) ([]*x509.Certificate, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
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
