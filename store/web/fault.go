package web

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"reflect"

	"cairn/internal/transfer"
	"cairn/store"
)

// Errors that a user can act on and that package store does not distinguish.
var (
	// ErrNoCertificate reports that the server wants a client certificate, or does not accept the
	// given one. It is a store.ErrDenied.
	ErrNoCertificate = fmt.Errorf("%w: the server wants a client certificate", store.ErrDenied)
	// ErrUnauthorized reports that the server wants credentials, or does not accept the given ones.
	// It is a store.ErrDenied.
	ErrUnauthorized = fmt.Errorf("%w: %s", store.ErrDenied, statusText(http.StatusUnauthorized))
	// ErrScheme reports http to an https port, or https to an http port.
	ErrScheme = errors.New("the port speaks another scheme")
)

// unwrapURLError unwraps a *url.Error, whose text repeats the URL with its query.
func unwrapURLError(err error) error {
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		return wrapped.Err
	}
	return err
}

// transportError converts a transport error. Only errors that a retry may resolve become
// store.ErrUnavailable.
func transportError(err error) error {
	if _, untrusted := errors.AsType[*tls.CertificateVerificationError](err); untrusted {
		return err
	}
	if _, noTLS := errors.AsType[tls.RecordHeaderError](err); noTLS || errors.Is(err, http.ErrSchemeMismatch) {
		return fmt.Errorf("%w: it does not speak https", ErrScheme)
	}
	if refusal := tlsAlertError(err); refusal != nil {
		return refusal
	}
	if scope, refused := errors.AsType[*transfer.ScopeError](err); refused {
		return fmt.Errorf("%w: %w", errRedirect, scope)
	}
	return transfer.Unavailable(err)
}

// Alerts of RFC 8446 §6.2 with which a server ends a handshake permanently.
const (
	alertHandshakeFailure    = 40
	alertBadCertificate      = 42
	alertUnknownCertificate  = 46
	alertUnknownCA           = 48
	alertAccessDenied        = 49
	alertProtocolVersion     = 70
	alertInsufficientSafety  = 71
	alertCertificateRequired = 116
)

// tlsAlertError returns the meaning of a TLS alert from the server, or nil for other errors.
func tlsAlertError(err error) error {
	remote, ok := errors.AsType[*net.OpError](err)
	if !ok || remote.Op != "remote error" {
		return nil
	}
	alert := reflect.ValueOf(remote.Err) // crypto/tls does not export the type of the alert number
	if alert.Kind() != reflect.Uint8 {
		return nil
	}
	switch code := alert.Uint(); {
	case code == alertCertificateRequired, code >= alertBadCertificate && code <= alertUnknownCertificate,
		code == alertUnknownCA, code == alertAccessDenied:
		return fmt.Errorf("%w: %w", ErrNoCertificate, remote.Err)
	case code == alertHandshakeFailure, code == alertProtocolVersion, code == alertInsufficientSafety:
		return fmt.Errorf("the server ends the handshake: it speaks no TLS 1.2 or later, or it wants a client certificate: %w", remote.Err)
	}
	return nil
}

// explainRefusal returns the more specific error that the page of a 400 answer indicates, or err.
func (b *Bucket) explainRefusal(m message, answer *http.Response, err error) error {
	page := b.readPage(answer)
	if answer.StatusCode == http.StatusNotFound {
		b.forms.markPresent(m.name)
	}
	if answer.StatusCode != http.StatusBadRequest {
		return err
	}
	if m.method == http.MethodHead {
		return cmp.Or(b.forms.lackingError(m.name), err)
	}
	for phrase, known := range map[string]error{
		"No required SSL certificate was sent":         ErrNoCertificate, // nginx
		"The SSL certificate error":                    fmt.Errorf("%w: it rejects the given one", ErrNoCertificate),
		"plain HTTP request was sent to HTTPS port":    fmt.Errorf("%w: it speaks https", ErrScheme),
		"Client sent an HTTP request to an HTTPS":      fmt.Errorf("%w: it speaks https", ErrScheme), // Go
		"speaking plain HTTP to an SSL-enabled server": fmt.Errorf("%w: it speaks https", ErrScheme), // Apache
	} {
		if bytes.Contains(page, []byte(phrase)) {
			return known
		}
	}
	return cmp.Or(b.explainDesync(m, page), err)
}
