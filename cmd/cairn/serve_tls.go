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

// security is the files of serve's TLS.
type security struct{ tlsfiles.Server }

func (f *security) add(c *cobra.Command) {
	c.Flags().StringVar(&f.Cert, "tls-cert", "", "`file` with the server's certificate, and those between it and its authority (PEM); makes TLS a must for clients")
	c.Flags().StringVar(&f.Key, "tls-key", "", "`file` with the certificate's key (PEM)")
	c.Flags().StringVar(&f.ClientCA, "tls-client-ca", "", "`file` with authorities (PEM), of which every client must have a certificate")
	check(c, func([]string) error {
		switch {
		case (f.Cert == "") != (f.Key == ""):
			return errors.New("--tls-cert and --tls-key belong together")
		case f.ClientCA != "" && f.Cert == "":
			return errors.New("--tls-client-ca wants --tls-cert and --tls-key")
		}
		return nil
	})
}

func (f *security) on() bool { return f.Cert != "" }

// config returns the server's TLS configuration, nil without --tls-cert. The log hears of files that have changed.
func (f *security) config(files *rotate.Reader, log *slog.Logger) (*tls.Config, error) {
	if !f.on() {
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
		say("warning: %s, the key for TLS, is open to others (mode %#o); 'chmod 600 %s' closes it", f.Key, info.Mode().Perm(), f.Key)
	}
	return config, nil
}
