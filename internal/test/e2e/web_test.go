package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"cairn/store/storetest"
)

// TestUploads: casync and desync read over HTTP what cairn makes there, and cairn reads desync's uploads.
func TestUploads(t *testing.T) {
	p, dir := small(t), t.TempDir()
	url := storetest.Nginx(t, t.TempDir(), storetest.WebDAV)
	cairn(t, "make", url+"/images/x.caibx", p.a)
	again := run(t, "cairn", "make", url+"/images/x.caibx", p.a)
	if again.status != 0 || !strings.Contains(again.stderr, "none was written") {
		t.Errorf("making it again: %d, %s", again.status, again.stderr)
	}
	store, index := url+"/images/default.castr", url+"/images/x.caibx"
	must(t, "casync", "extract", "--store="+store, "--seed-output=no", index, filepath.Join(dir, "casync"))
	wantSame(t, filepath.Join(dir, "casync"), p.a)
	must(t, "desync", "extract", "-s", store, index, filepath.Join(dir, "desync"))
	wantSame(t, filepath.Join(dir, "desync"), p.a)

	must(t, "desync", "make", "-s", url+"/theirs", url+"/y.caibx", p.b)
	cairn(t, "assemble", url+"/y.caibx", filepath.Join(dir, "cairn"), "-s", url+"/theirs")
	wantSame(t, filepath.Join(dir, "cairn"), p.b)
}

// TestGuardedServer: each job against a server that requires a certificate, a token and a signature. The error
// names the missing credential and a remedy, and shows no secret.
func TestGuardedServer(t *testing.T) {
	p, dir, a := small(t), t.TempDir(), storetest.NewAuthority(t)
	url := storetest.NginxTLS(t, t.TempDir(), a, storetest.WebDAV,
		fmt.Sprintf("ssl_client_certificate %s; ssl_verify_client on;", a.Cert),
		`if ($http_authorization != "Bearer hush-token") { return 401; }`, `if ($arg_sig != "hush-sig") { return 403; }`)
	index := url + "/images/x.caibx?sig=hush-sig"
	cert, key := a.Client(t, "device")
	token := writeFile(t, dir, "token", []byte("hush-token\n"))
	trusted := []string{"--ca-cert", a.Cert}
	shown := append(trusted, "--client-cert", cert, "--client-key", key)
	all := append(shown, "--bearer-token-file", strings.TrimPrefix(url, "https://")+"="+token)
	elsewhere := append(shown, "--bearer-token-file", "elsewhere.example.com="+token)
	for _, refused := range []struct {
		args  []string
		index string
		words string
	}{
		{nil, index, "hint: if the server's authority is your own, name its certificate: --ca-cert"},
		{trusted, index, "hint: name one that the server believes: --client-cert"},
		{shown, index, "access denied: 401"},
		{elsewhere, index, "access denied: 401"},
		{all, strings.Replace(index, "hush-sig", "hush-no", 1), "access denied: 403"},
	} {
		for _, job := range [][]string{{"make", refused.index, p.a}, {"info", refused.index}} {
			got := run(t, "cairn", append(job, refused.args...)...)
			if got.status == 0 || !strings.Contains(got.stderr, refused.words) || strings.Contains(got.stderr, "hush") {
				t.Errorf("%s: status %d, %s; want %q and no secret", job[0], got.status, got.stderr, refused.words)
			}
		}
	}
	out := filepath.Join(dir, "out")
	for _, job := range [][]string{
		{"make", index, p.a}, {"info", index}, {"verify", index}, {"plan", index, out}, {"assemble", index, out},
		{"cat", index, "--length", "10"}, {"diff", index, index},
	} {
		got := run(t, "cairn", append(job, all...)...)
		if got.status != 0 || strings.Contains(got.stdout+got.stderr, "hush") {
			t.Errorf("%s: status %d, %s %s", job[0], got.status, got.stdout, got.stderr)
		}
	}
	wantSame(t, out, p.a)
	t.Setenv("CAIRN_BEARER_TOKEN", "hush-token")
	if got := run(t, "cairn", append([]string{"info", index}, shown...)...); got.status != 0 {
		t.Errorf("with the token in the environment: status %d, %s", got.status, got.stderr)
	}
}
