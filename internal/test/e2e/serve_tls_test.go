package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// certificates makes an authority, and its certificates for the server and a client, by the commands in
// docs/serve.md. The directory holds ca-cert.pem, server-cert.pem, server-key.pem, client-cert.pem and
// client-key.pem.
func certificates(t testing.TB, key ...string) string {
	t.Helper()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	templates := map[string]string{
		"ca":     "cn = the images' authority\nca\ncert_signing_key\nexpiration_days = 10\n",
		"server": "cn = localhost\ndns_name = localhost\nip_address = 127.0.0.1\ntls_www_server\nsigning_key\nencryption_key\nexpiration_days = 10\n",
		"client": "cn = a guest\ntls_www_client\nsigning_key\nencryption_key\nexpiration_days = 10\n",
	}
	for _, who := range []string{"ca", "server", "client"} {
		if err := os.WriteFile(at(who+".info"), []byte(templates[who]), 0o600); err != nil {
			t.Fatal(err)
		}
		must(t, "certtool", append([]string{"--generate-privkey", "--outfile", at(who + "-key.pem")}, key...)...)
		how := []string{"--generate-self-signed"}
		if who != "ca" {
			how = []string{"--generate-certificate", "--load-ca-certificate", at("ca-cert.pem"), "--load-ca-privkey", at("ca-key.pem")}
		}
		must(t, "certtool", append(how, "--load-privkey", at(who+"-key.pem"), "--template", at(who+".info"), "--outfile", at(who+"-cert.pem"))...)
	}
	return dir
}

// TestServeTLS: with keys of both kinds, made with GnuTLS's tool, GnuTLS's clients read the image. Clients without a
// certificate or without TLS do not.
func TestServeTLS(t *testing.T) {
	t.Parallel()
	r := noise(t, 2*mib+1024)
	for name, key := range map[string][]string{
		"ecdsa": {"--key-type", "ecdsa", "--curve", "secp256r1"}, "rsa": {"--key-type", "rsa", "--bits", "2048"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := certificates(t, key...)
			socket := filepath.Join(socketDir(t), "socket")
			s := serve(t, 2, r.index("b"), "--listen", "unix:"+socket, "--listen", "tcp:127.0.0.1:0",
				"--tls-cert", filepath.Join(dir, "server-cert.pem"), "--tls-key", filepath.Join(dir, "server-key.pem"),
				"--tls-client-ca", filepath.Join(dir, "ca-cert.pem"))
			if !strings.HasPrefix(s.uris[0], "nbds+unix:///b?socket=") || !strings.HasPrefix(s.uris[1], "nbds://127.0.0.1:") {
				t.Errorf("the URIs are %q", s.uris)
			}
			useNBDCopy(t, s.uris[0]+"&tls-certificates="+dir, r)
			tcp := strings.Replace(s.uris[1], "127.0.0.1", "localhost", 1)
			useNBDCopy(t, tcp+"?tls-certificates="+dir, r)
			if info := must(t, "nbdinfo", tcp+"?tls-certificates="+dir); !strings.Contains(info, "newstyle-fixed with TLS") {
				t.Errorf("nbdinfo says:\n%s", info)
			}
			port := s.uris[1][strings.LastIndexByte(s.uris[1], ':')+1 : strings.LastIndexByte(s.uris[1], '/')]
			qemu := func(dir string) ran {
				return run(t, "qemu-img", "compare", "--object", "tls-creds-x509,id=t,endpoint=client,dir="+dir, "--image-opts",
					"driver=raw,file.filename="+r.b, "driver=nbd,export=b,tls-creds=t,server.type=inet,server.host=localhost,server.port="+port)
			}
			if got := qemu(dir); got.status != 0 {
				t.Errorf("qemu-img compare: %+v", got)
			}
			if got := run(t, "nbdinfo", strings.Replace(s.uris[0], "nbds", "nbd", 1)); got.status == 0 {
				t.Errorf("nbdinfo without TLS: %+v", got)
			}
			anonymous := t.TempDir()
			must(t, "cp", filepath.Join(dir, "ca-cert.pem"), anonymous)
			if got := qemu(anonymous); got.status == 0 {
				t.Errorf("qemu-img without a certificate: %+v", got)
			}
			if got := run(t, "nbdinfo", tcp+"?tls-certificates="+anonymous); got.status == 0 {
				t.Errorf("nbdinfo without a certificate: %+v", got)
			}
		})
	}
}

// TestServeTLSRotation: new certificates take effect with the next client, an invalid file has no effect, and
// connected clients stay connected.
func TestServeTLSRotation(t *testing.T) {
	t.Parallel()
	r := noise(t, mib)
	ecdsa := []string{"--key-type", "ecdsa", "--curve", "secp256r1"}
	old, next, live := certificates(t, ecdsa...), certificates(t, ecdsa...), t.TempDir()
	install := func(from, what string) {
		t.Helper()
		must(t, "cp", filepath.Join(from, what), filepath.Join(live, "new"))
		must(t, "mv", filepath.Join(live, "new"), filepath.Join(live, what))
	}
	install(old, "server-cert.pem")
	install(old, "server-key.pem")
	must(t, "chmod", "644", filepath.Join(live, "server-key.pem"))
	s := serve(t, 1, r.index("b"), "--listen", "tcp:127.0.0.1:0",
		"--tls-cert", filepath.Join(live, "server-cert.pem"), "--tls-key", filepath.Join(live, "server-key.pem"))
	s.stderr.await(t, "is open to others") // on stderr, unlike the URI
	uri := func(dir string) string { return s.uris[0] + "?tls-certificates=" + dir }
	trusted := func(dir string, want bool) {
		t.Helper()
		if got := run(t, "nbdinfo", "--size", uri(dir)); (got.status == 0) != want {
			t.Errorf("nbdinfo, want success %v: %+v", want, got)
		}
	}
	trusted(old, true)
	trusted(next, false)
	stays := holdOpen(t, uri(old))
	install(next, "server-cert.pem") // without its key
	trusted(old, true)
	s.stderr.await(t, "the new certificates are not used")
	install(next, "server-key.pem")
	trusted(next, true)
	trusted(old, false)
	stays.compare(t, r.b)
	stays.leave(t)
}

func TestServeTLSFails(t *testing.T) {
	t.Parallel()
	r := noise(t, 1000)
	dir := certificates(t, "--key-type", "ecdsa", "--curve", "secp256r1")
	cert, key := filepath.Join(dir, "server-cert.pem"), filepath.Join(dir, "server-key.pem")
	for _, tc := range []struct {
		status int
		words  string
		args   []string
	}{
		{2, "belong together", []string{"--tls-cert", cert}},
		{2, "needs --tls-cert", []string{"--tls-client-ca", cert}},
		{notFound, "absent", []string{"--tls-cert", cert, "--tls-key", filepath.Join(dir, "absent")}},
		{failed, "private key does not match", []string{"--tls-cert", cert, "--tls-key", filepath.Join(dir, "client-key.pem")}},
		{failed, "there is no certificate in it", []string{"--tls-cert", cert, "--tls-key", key, "--tls-client-ca", key}},
	} {
		fails(t, tc.status, tc.words, append([]string{"serve", r.index("b")}, tc.args...)...)
	}
}
