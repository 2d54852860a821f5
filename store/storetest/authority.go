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

// Authority is a private certificate authority, and the directory that it keeps its files in.
type Authority struct {
	Cert string // the path of its own certificate
	dir  string
	key  *ecdsa.PrivateKey
	self *x509.Certificate
}

// NewAuthority makes one that lives as long as the test.
func NewAuthority(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{dir: t.TempDir()}
	template := template("an authority for tests", time.Hour)
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign
	a.Cert, _ = a.Issue(t, "authority", template)
	return a
}

// Server issues a certificate for these names and addresses, and returns the paths of it and its key.
func (a *Authority) Server(t testing.TB, names ...string) (cert, key string) {
	t.Helper()
	return a.Issue(t, "server-"+names[0], ServerTemplate(time.Hour, names...))
}

// Client issues a client's certificate.
func (a *Authority) Client(t testing.TB, name string) (cert, key string) {
	t.Helper()
	return a.Issue(t, "client-"+name, ClientTemplate(time.Hour, name))
}

// ServerTemplate is a server's certificate that ends after valid, which may lie in the past.
func ServerTemplate(valid time.Duration, names ...string) *x509.Certificate {
	template := template(names[0], valid)
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

// ClientTemplate is a client's certificate that ends after valid, which may lie in the past.
func ClientTemplate(valid time.Duration, name string) *x509.Certificate {
	template := template(name, valid)
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	return template
}

func template(name string, valid time.Duration) *x509.Certificate {
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

// Issue signs what the template says, for a new key. Files of that name are replaced, each at once.
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
