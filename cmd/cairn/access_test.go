package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"

	"cairn/store"
	"cairn/store/web"
)

// TestAccessHint finds causes deep in the errors that they come in.
func TestAccessHint(t *testing.T) {
	untrusted := func(err error) error { return &tls.CertificateVerificationError{Err: err} }
	for want, err := range map[string]error{
		"--ca-cert":     untrusted(x509.UnknownAuthorityError{}),
		"a name":        untrusted(x509.HostnameError{}),
		"clock":         untrusted(x509.CertificateInvalidError{Reason: x509.Expired}),
		"--client-cert": web.ErrNoCertificate,
		"https://":      web.ErrScheme,
		"--bearer":      web.ErrUnauthorized,
		"credentials":   store.ErrDenied,
	} {
		err := fmt.Errorf("reading index x: %w", errors.Join(err))
		if got := hintFor(newRoot(), err, exitStatus(t.Context(), err)); !strings.Contains(got, want) {
			t.Errorf("hintFor(%v) = %q, want %q in it", err, got, want)
		}
	}
}
