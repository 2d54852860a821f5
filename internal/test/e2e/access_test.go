package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"cairn/store/storetest"
)

// TestCredentialsOfPipes: a shell's <(...) can be read only once. The indexes, stores, seeds and profiles of a
// command share its content.
func TestCredentialsOfPipes(t *testing.T) {
	r, a := publish(t, small(t)), storetest.NewAuthority(t)
	cert, key := a.Client(t, "device")
	url := storetest.NginxTLS(t, r.dir, a, fmt.Sprintf("ssl_client_certificate %s; ssl_verify_client on;", a.Cert),
		`if ($http_authorization != "Bearer hush-token") { return 401; }`, `if ($http_x_key != "hush-key") { return 403; }`)
	host := strings.TrimPrefix(url, "https://")
	dir := t.TempDir()
	header, token := writeFile(t, dir, "header", []byte("X-Key: hush-key\n")), writeFile(t, dir, "token", []byte("hush-token\n"))
	flags := fmt.Sprintf(" --ca-cert <(cat %s) --client-cert <(cat %s) --client-key <(cat %s) --header-file %s=<(cat %s) --bearer-token-file %s=<(cat %s)",
		a.Cert, cert, key, host, header, host, token)
	bash := func(command string) {
		t.Helper()
		must(t, "bash", "-c", "cairn "+command)
	}
	out := filepath.Join(dir, "out")
	bash(fmt.Sprintf("assemble %s/b.caibx %s --state '' --seed %s=%s/a.caibx -s %s/default.castr -s %s/default.castr%s", url, out, r.a, url, url, url, flags))
	wantSame(t, out, r.b)
	bash(fmt.Sprintf("store copy %s/default.castr %s %s/a.caibx %s/b.caibx%s", url, filepath.Join(dir, "copy.castr"), url, url, flags))
	bash(fmt.Sprintf("make %s %s --base %s/a.caibx --base %s/b.caibx%s", filepath.Join(dir, "x.caibx"), r.a, url, url, flags))

	server := storetest.S3(t, storetest.S3Options{})
	server.Bucket(t, "images")
	s3Keys(t, server)
	cairn(t, "make", server.Location("images/x.caibx", ""), r.a)
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	shared := writeFile(t, dir, "aws", fmt.Appendf(nil, "[default]\naws_access_key_id=%s\naws_secret_access_key=%s\n", server.AccessKey, server.SecretKey))
	config := writeFile(t, dir, "config", []byte("[default]\nregion = us-east-1\n"))
	must(t, "bash", "-c", fmt.Sprintf("AWS_SHARED_CREDENTIALS_FILE=<(cat %s) AWS_CONFIG_FILE=<(cat %s) cairn verify '%s'",
		shared, config, server.Location("images/x.caibx", "")))
}

// TestServeTLSOfPipes: the server's certificate and key may be such pipes, too, for its whole lifetime.
func TestServeTLSOfPipes(t *testing.T) {
	t.Parallel()
	r, dir := noise(t, 1000), certificates(t, "--key-type", "ecdsa", "--curve", "secp256r1")
	s := &serving{job: startProgram(t, nil, "bash", "-c", fmt.Sprintf("exec cairn serve %s --listen tcp:127.0.0.1:0 --tls-cert <(cat %s) --tls-key <(cat %s)",
		r.index("b"), filepath.Join(dir, "server-cert.pem"), filepath.Join(dir, "server-key.pem")))}
	t.Cleanup(func() { s.signal(t, syscall.SIGTERM); s.wantStopped(t) })
	s.uris = strings.Fields(s.stdout.await(t, "\n"))
	for range 3 {
		must(t, "nbdinfo", "--size", s.uris[0]+"?tls-certificates="+dir)
	}
	if said := s.stderr.String(); strings.Contains(said, "certificates") {
		t.Errorf("the server says %s", said)
	}
}
