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

// What a user can do something about that the kinds of store do not tell.
var (
	// ErrNoCertificate is denied for want of a client certificate, or of one that the server believes.
	ErrNoCertificate = fmt.Errorf("%w: the server wants a client certificate", store.ErrDenied)
	// ErrUnauthorized is denied for want of credentials that the server knows.
	ErrUnauthorized = fmt.Errorf("%w: %s", store.ErrDenied, statusText(http.StatusUnauthorized))
	// ErrScheme says that http was spoken to an https port, or https to an http port.
	ErrScheme = errors.New("the port speaks another scheme")
)

// cause takes off the *url.Error, which repeats the URL with its query.
func cause(err error) error {
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		return wrapped.Err
	}
	return err
}

// classify tells what a later attempt may mend from what it cannot.
func classify(err error) error {
	if _, untrusted := errors.AsType[*tls.CertificateVerificationError](err); untrusted {
		return err
	}
	if _, noTLS := errors.AsType[tls.RecordHeaderError](err); noTLS || errors.Is(err, http.ErrSchemeMismatch) {
		return fmt.Errorf("%w: it does not speak https", ErrScheme)
	}
	if refusal := refusedByTLS(err); refusal != nil {
		return refusal
	}
	return transfer.Unavailable(err)
}

// Alerts of RFC 8446 §6.2 by which a server ends a handshake for good.
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

// refusedByTLS is what an alert of the server means, or nil.
func refusedByTLS(err error) error {
	remote, ok := errors.AsType[*net.OpError](err)
	if !ok || remote.Op != "remote error" {
		return nil
	}
	alert := reflect.ValueOf(remote.Err) // a number of crypto/tls, whose type has no name outside
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

// explain finds in the page that came with a bad request what the server could not say by its status.
func (b *Bucket) explain(m message, answer *http.Response, err error) error {
	page := b.page(answer)
	if answer.StatusCode == http.StatusNotFound {
		b.forms.have(m.name)
	}
	if answer.StatusCode != http.StatusBadRequest {
		return err
	}
	if m.method == http.MethodHead {
		return cmp.Or(b.forms.lacks(m.name), err)
	}
	for phrase, known := range map[string]error{
		"No required SSL certificate was sent":         ErrNoCertificate, // nginx
		"The SSL certificate error":                    fmt.Errorf("%w: it does not believe the one it got", ErrNoCertificate),
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
