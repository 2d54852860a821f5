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

// TestAccessHint: as the errors come, deep in others.
func TestAccessHint(t *testing.T) {
	untrusted := func(err error) error { return &tls.CertificateVerificationError{Err: err} }
	for want, err := range map[string]error{
		"--ca-cert":     untrusted(x509.UnknownAuthorityError{}),
		"a name":        untrusted(x509.HostnameError{}),
		"clock":         untrusted(x509.CertificateInvalidError{Reason: x509.Expired}),
		"--client-cert": web.ErrNoCertificate,
		"https://":      web.ErrScheme,
		"--bearer":      store.ErrDenied,
	} {
		err := fmt.Errorf("reading index x: %w", errors.Join(err))
		if got := hintFor(err, exitStatus(t.Context(), err)); !strings.Contains(got, want) {
			t.Errorf("hintFor(%v) = %q, want %q in it", err, got, want)
		}
	}
}

func TestSplitHost(t *testing.T) {
	for text, want := range map[string][2]string{
		"token":                        {"", "token"},
		"/run/token":                   {"", "/run/token"},
		"store.example.com=/run/token": {"store.example.com", "/run/token"},
		"store.example.com:8443=a=b":   {"store.example.com:8443", "a=b"},
		"[::1]:8443=token":             {"[::1]:8443", "token"},
		"./a=b":                        {"", "./a=b"},
		"/run/a=b":                     {"", "/run/a=b"},
		"=token":                       {"", "token"},
	} {
		if host, file := splitHost(text); host != want[0] || file != want[1] {
			t.Errorf("splitHost(%q) = %q, %q; want %q", text, host, file, want)
		}
	}
}
