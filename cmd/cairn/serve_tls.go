package main

import (
	"crypto/tls"
	"errors"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"cairn/internal/rotate"
	"cairn/internal/tlsfiles"
)

// serverTLS holds the flags of serve's TLS.
type serverTLS struct{ tlsfiles.Server }

func (f *serverTLS) addFlags(c *cobra.Command) {
	c.Flags().StringVar(&f.Cert, "tls-cert", "", "PEM `file` with the server's certificate and the intermediate ones; clients must use TLS")
	c.Flags().StringVar(&f.Key, "tls-key", "", "PEM `file` with the key of --tls-cert")
	c.Flags().StringVar(&f.ClientCA, "tls-client-ca", "", "PEM `file` with authorities; every client needs a certificate of one of them")
	addCheck(c, func([]string) error {
		switch {
		case (f.Cert == "") != (f.Key == ""):
			return errors.New("--tls-cert and --tls-key belong together")
		case f.ClientCA != "" && f.Cert == "":
			return errors.New("--tls-client-ca needs --tls-cert and --tls-key")
		}
		return nil
	})
}

func (f *serverTLS) usesTLS() bool { return f.Cert != "" }

// tlsConfig returns the server's TLS configuration, or nil without --tls-cert. It logs each change of the files.
func (f *serverTLS) tlsConfig(files *rotate.Reader, log *slog.Logger) (*tls.Config, error) {
	if !f.usesTLS() {
		return nil, nil
	}
	config, err := f.Config(files, func(err error) {
		if err != nil {
			log.Error("the new certificates are not used", "err", err)
		} else {
			log.Info("the certificates were read again")
		}
	})
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(f.Key); err == nil && info.Mode().Perm()&0o077 != 0 && info.Mode().IsRegular() {
		logf("warning: %s, the key for TLS, is open to others (mode %#o); 'chmod 600 %s' closes it", f.Key, info.Mode().Perm(), f.Key)
	}
	return config, nil
}
