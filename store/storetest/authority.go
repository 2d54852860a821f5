package storetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Authority is a private certificate authority with a directory for its files.
type Authority struct {
	Cert string // the path of its own certificate
	dir  string
	key  *ecdsa.PrivateKey
	self *x509.Certificate
}

// NewAuthority returns an authority whose files are removed at the end of the test.
func NewAuthority(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{dir: t.TempDir()}
	template := newTemplate("an authority for tests", time.Hour)
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign
	a.Cert, _ = a.Issue(t, "authority", template)
	return a
}

// Server issues a certificate for these names and addresses, and returns its path and the path of
// its key.
func (a *Authority) Server(t testing.TB, names ...string) (cert, key string) {
	t.Helper()
	return a.Issue(t, "server-"+names[0], ServerTemplate(time.Hour, names...))
}

// Client issues a client certificate, and returns its path and the path of its key.
func (a *Authority) Client(t testing.TB, name string) (cert, key string) {
	t.Helper()
	return a.Issue(t, "client-"+name, ClientTemplate(time.Hour, name))
}

// ServerTemplate returns a server certificate that expires after valid, which may be negative.
func ServerTemplate(valid time.Duration, names ...string) *x509.Certificate {
	template := newTemplate(names[0], valid)
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	return template
}

// ClientTemplate returns a client certificate that expires after valid, which may be negative.
func ClientTemplate(valid time.Duration, name string) *x509.Certificate {
	template := newTemplate(name, valid)
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	return template
}

func newTemplate(name string, valid time.Duration) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		panic(err)
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(valid), KeyUsage: x509.KeyUsageDigitalSignature,
	}
}

// Issue signs the template for a new key. It replaces existing files of that name, each one
// atomically.
func (a *Authority) Issue(t testing.TB, name string, template *x509.Certificate) (cert, key string) {
	t.Helper()
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if a.self == nil {
		a.self, a.key = template, own
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.self, &own.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(own)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(a.dir, name+".pem"), filepath.Join(a.dir, name+".key")
	err = errors.Join(writePEM(key, "PRIVATE KEY", private), writePEM(cert, "CERTIFICATE", der))
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func writePEM(path, kind string, der []byte) error {
	text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	return errors.Join(os.WriteFile(path+".new", text, 0o600), os.Rename(path+".new", path))
}
