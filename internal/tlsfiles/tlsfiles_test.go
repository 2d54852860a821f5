package tlsfiles_test

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/internal/tlsfiles"
	"cairn/store/storetest"
)

// server requires a client certificate of the authority, and answers with the name in it.
func server(t *testing.T, a *storetest.Authority) string {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(a.Server(t, "127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.TLS.PeerCertificates[0].Subject.CommonName)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool(t, a)}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL
}

func pool(t *testing.T, a *storetest.Authority) *x509.CertPool {
	t.Helper()
	text, err := os.ReadFile(a.Cert)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	return pool
}

func ask(config *tls.Config, url string) (string, error) {
	transport := &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}
	answer, err := (&http.Client{Transport: transport}).Get(url)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	return string(text), err
}

func check(t *testing.T, config *tls.Config, url, want string) {
	t.Helper()
	got, err := ask(config, url)
	if err != nil && want != "" || got != want {
		t.Errorf("the server sees %q, %v; want %q", got, err, want)
	}
}

func config(t *testing.T, files tlsfiles.Files) *tls.Config {
	t.Helper()
	c, err := files.Config(nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestConfig(t *testing.T) {
	a, other := storetest.NewAuthority(t), storetest.NewAuthority(t)
	cert, key := a.Client(t, "device")
	url := server(t, a)
	check(t, config(t, tlsfiles.Files{CA: a.Cert, Cert: cert, Key: key}), url, "device")
	check(t, config(t, tlsfiles.Files{CA: a.Cert}), url, "")
	check(t, config(t, tlsfiles.Files{CA: other.Cert, Cert: cert, Key: key}), url, "")
	check(t, config(t, tlsfiles.Files{Cert: cert, Key: key}), url, "")
	both := filepath.Join(t.TempDir(), "both.pem")
	join(t, both, cert, key)
	check(t, config(t, tlsfiles.Files{CA: a.Cert, Cert: both}), url, "device")
	if got := config(t, tlsfiles.Files{}); got.MinVersion != tls.VersionTLS12 || got.RootCAs != nil || got.GetClientCertificate != nil {
		t.Errorf("the configuration of no files is %+v", got)
	}
}

func join(t *testing.T, to string, parts ...string) {
	t.Helper()
	var all []byte
	for _, part := range parts {
		text, err := os.ReadFile(part)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, text...)
	}
	if err := os.WriteFile(to, all, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestRotation: the certificate is replaced, first without its key, and finally removed.
func TestRotation(t *testing.T) {
	a := storetest.NewAuthority(t)
	url := server(t, a)
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	first, firstKey := a.Client(t, "first")
	second, secondKey := a.Client(t, "second")
	ended, endedKey := a.Issue(t, "ended", storetest.ClientTemplate(-1, "ended"))
	join(t, cert, first)
	join(t, key, firstKey)
	c := config(t, tlsfiles.Files{CA: a.Cert, Cert: cert, Key: key})
	check(t, c, url, "first")
	join(t, cert, second)
	check(t, c, url, "first")
	join(t, key, secondKey)
	check(t, c, url, "second")
	join(t, cert)
	check(t, c, url, "second")
	join(t, cert, ended)
	join(t, key, endedKey)
	check(t, c, url, "")
	join(t, key)
	if _, err := ask(c, url); err == nil || !strings.Contains(err.Error(), "cannot be read") {
		t.Errorf("with an expired certificate and an empty file = %v, want what is wrong with the file", err)
	}
}

func TestRefused(t *testing.T) {
	a := storetest.NewAuthority(t)
	cert, key := a.Client(t, "x")
	_, otherKey := a.Client(t, "y")
	empty := filepath.Join(t.TempDir(), "empty")
	join(t, empty)
	for name, files := range map[string]tlsfiles.Files{
		"absent authority":   {CA: empty + "-absent"},
		"empty authority":    {CA: empty},
		"key as authority":   {CA: key},
		"absent certificate": {Cert: empty + "-absent", Key: key},
		"empty certificate":  {Cert: empty, Key: key},
		"another's key":      {Cert: cert, Key: otherKey},
		"no key":             {Cert: cert},
		"key alone":          {Key: key},
	} {
		if _, err := files.Config(nil); err == nil {
			t.Errorf("%s: Config succeeded", name)
		}
	}
}
