package tlsfiles_test

import (
	"crypto/tls"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/internal/rotate"
	"cairn/internal/tlsfiles"
	"cairn/store/storetest"
)

// TestServer: a server with and without client certificates, and changes of the files while it runs.
func TestServer(t *testing.T) {
	a, other := storetest.NewAuthority(t), storetest.NewAuthority(t)
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	s := tlsfiles.Server{Cert: in("cert"), Key: in("key"), ClientCA: in("ca")}
	cert, key := a.Server(t, "127.0.0.1")
	join(t, s.Cert, cert)
	join(t, s.Key, key)
	join(t, s.ClientCA, other.Cert)
	var changes []string
	open := serve(t, tlsfiles.Server{Cert: s.Cert, Key: s.Key}, nil)
	closed := serve(t, s, func(err error) {
		if err != nil {
			changes = append(changes, "failed")
		} else {
			changes = append(changes, "read")
		}
	})
	clientCert, clientKey := other.Client(t, "device")
	known := config(t, tlsfiles.Files{CA: a.Cert, Cert: clientCert, Key: clientKey})
	strange := config(t, tlsfiles.Files{CA: a.Cert})
	wantAnswers := func(url string, config *tls.Config, want bool) {
		t.Helper()
		if _, err := ask(config, url); (err == nil) != want {
			t.Errorf("the server answers: %v, want %v", err, want)
		}
	}
	wantAnswers(open, strange, true)
	wantAnswers(closed, known, true)
	wantAnswers(closed, strange, false)
	join(t, s.Cert) // half of a replacement is reported once
	wantAnswers(closed, known, true)
	wantAnswers(closed, known, true)
	join(t, s.Cert, cert)
	wantAnswers(closed, known, true)
	join(t, s.ClientCA, a.Cert)
	wantAnswers(closed, known, false)
	if diff := cmp.Diff([]string{"failed", "read", "read"}, changes); diff != "" {
		t.Error(diff)
	}
}

// serve starts a server with the configuration of the files.
func serve(t *testing.T, files tlsfiles.Server, changed func(error)) string {
	t.Helper()
	config, err := files.Config(new(rotate.Reader), changed)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = config
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL
}

func TestServerRefused(t *testing.T) {
	a := storetest.NewAuthority(t)
	cert, key := a.Server(t, "127.0.0.1")
	_, otherKey := a.Client(t, "device")
	empty := filepath.Join(t.TempDir(), "empty")
	join(t, empty)
	for name, files := range map[string]tlsfiles.Server{
		"absent":           {Cert: empty + "-absent", Key: key},
		"another's key":    {Cert: cert, Key: otherKey},
		"empty authority":  {Cert: cert, Key: key, ClientCA: empty},
		"key as authority": {Cert: cert, Key: key, ClientCA: key},
	} {
		if _, err := files.Config(nil, nil); err == nil {
			t.Errorf("%s: Config succeeded", name)
		}
	}
}
