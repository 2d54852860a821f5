package storetest

import (
	"fmt"
	"testing"

	"cairn/internal/test/need"
	"cairn/internal/test/nginx"
)

// Nginx serves a directory with a real nginx on 127.0.0.1 until the test ends, and returns its URL.
// It adds the directives to its only server block; they set the root if dir is "".
func Nginx(t testing.TB, dir string, directives ...string) string {
	t.Helper()
	return "http://" + StartNginx(t, nginx.Options{Root: dir, Directives: directives}).Address()
}

// NginxTLS is Nginx with a certificate of the authority for 127.0.0.1, localhost and store.test, a
// name for tests with a proxy. Without an authority the directives set the certificate.
func NginxTLS(t testing.TB, dir string, a *Authority, directives ...string) string {
	t.Helper()
	if a != nil {
		cert, key := a.Server(t, "127.0.0.1", "localhost", "store.test")
		directives = append(directives, fmt.Sprintf("ssl_certificate %s; ssl_certificate_key %s;", cert, key))
	}
	return "https://" + StartNginx(t, nginx.Options{Root: dir, TLS: true, Directives: directives}).Address()
}

// WebDAV holds the directives that enable uploads.
const WebDAV = "dav_methods PUT; create_full_put_path on; client_max_body_size 64m;"

// StartNginx runs a real nginx in a temporary directory until the test ends.
func StartNginx(t testing.TB, o nginx.Options) *nginx.Server {
	t.Helper()
	need.Tool(t, "nginx")
	o.Work = t.TempDir()
	s, err := nginx.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.Stop()
		if t.Failed() {
			t.Logf("nginx: %s", s.Errors())
		}
	})
	return s
}
