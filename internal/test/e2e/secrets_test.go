package e2e

import (
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"cairn/internal/test/need"
	"cairn/store/storetest"
)

// secret is a part of every password, token, key and query of TestSecrets, and must not appear anywhere else.
const secret = "hush"

// guarded serves a directory to clients with every secret, and refuses others in many ways.
func guarded(t *testing.T, dir string) *url.URL {
	t.Helper()
	files := http.FileServer(http.Dir(dir))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, password, _ := r.BasicAuth()
		switch {
		case strings.HasPrefix(r.URL.Path, "/moved/"):
			http.Redirect(w, r, "http://u:hush-there@127.0.0.1:1"+r.URL.Path+"?sig=hush-moved", http.StatusFound)
		case password != "hush-password" || r.URL.Query().Get("sig") != "hush-query" || r.Header.Get("X-Key") != "hush-header":
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, "you sent "+r.URL.String()+r.Header.Get("Authorization")+r.Header.Get("X-Key"))
		default:
			files.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.User, u.RawQuery = url.UserPassword("hush-user", "hush-password"), "sig=hush-query"
	return u
}

// TestSecrets uses secrets in every kind of location and credential. No message, result, log, metric, status
// page or file that remains contains one.
func TestSecrets(t *testing.T) {
	need.Tool(t, "ssh")
	r := publish(t, small(t))
	dir, state, cache := t.TempDir(), t.TempDir(), t.TempDir()
	must(t, "cp", r.index("a"), filepath.Join(r.dir, "odd.caibx"))
	cairn(t, "make", filepath.Join(r.dir, "sha256.caibx"), r.a, "--digest", "sha256", "-s", filepath.Join(r.dir, "sha256.castr"))
	writeFile(t, r.dir, "page.caibx", []byte("hush? no index"))
	root := guarded(t, r.dir)
	at := func(name string) string { u := *root; u.Path = "/" + name; return u.String() }
	server := storetest.S3(t, storetest.S3Options{})
	server.Bucket(t, "images")
	s3Keys(t, server)
	inS3 := server.Location("images/v1/a.caibx", "?profile=none")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "hush-aws")
	t.Setenv("AWS_SESSION_TOKEN", "hush-session")
	t.Setenv("CAIRN_BEARER_TOKEN", "hush-bearer")
	t.Setenv("FTP_PROXY", "http://u:hush-proxy@127.0.0.1:1")
	header := writeFile(t, dir, "header", []byte("X-Key: hush-header\n"))
	token := writeFile(t, dir, "token", []byte("hush-token\n"))
	broken := writeFile(t, dir, "broken", []byte("hush broken\n"))
	keys := []string{"--header-file", root.Host + "=" + header, "--bearer-token-file", "elsewhere.example.com=" + token}
	out := filepath.Join(dir, "out")
	shown := new(strings.Builder)
	say := func(what string, got ran) {
		fmt.Fprintf(shown, "== %s: %d\n%s\n%s\n", what, got.status, got.stdout, got.stderr)
	}
	do := func(status int, args ...string) { // -1 means any failure
		t.Helper()
		got := run(t, "cairn", args...)
		if got.status != status && (status >= 0 || got.status <= 0) {
			t.Errorf("cairn %q: exit status %d, want %d\n%s", args, got.status, status, got.stderr)
		}
		say(strings.ReplaceAll(strings.Join(args, " "), secret, "…"), got)
	}
	with := func(args ...string) []string { return append(args, keys...) }

	do(0, with("info", at("a.caibx"))...)
	do(0, with("verify", at("a.caibx"), "--json")...)
	do(0, with("assemble", at("a.caibx"), out, "--json", "--state", state, "-c", cache, "--seed", r.b+"="+at("b.caibx"))...)
	do(0, with("assemble", at("b.caibx"), out, "--state", state, "--seed", r.a+"="+at("sha256.caibx"), "--seed", r.a+"="+at("absent.caibx"),
		"--seed", r.a+"="+at("page.caibx"), "-s", at("absent.castr")+"|"+at("default.castr"))...)
	do(0, with("plan", at("a.caibx"), out, "--html", filepath.Join(dir, "plan.html"), "--state", state)...)
	do(0, with("diff", at("a.caibx"), at("b.caibx"), "--html", filepath.Join(dir, "diff.html"), "-s", at("default.castr"))...)
	do(0, with("diff", at("a.caibx"), at("b.caibx"), "--json")...)
	do(1, with("diff", at("a.caibx"), at("sha256.caibx"))...)
	do(0, with("cat", at("a.caibx"), "--length", "10")...)
	do(0, with("store", "verify", at("default.castr"), at("a.caibx"), "--json", "--state", state)...)
	do(0, with("store", "stat", at("default.castr"), at("a.caibx"), "--json")...)
	do(0, with("store", "copy", at("default.castr"), filepath.Join(dir, "copy.castr"), at("a.caibx"), "--indexes-to", dir, "--json")...)
	do(0, with("make", filepath.Join(dir, "m.caibx"), r.a, "--base", at("a.caibx"))...)

	// Failures do not show them either.
	do(-1, "info", at("a.caibx"))
	do(-1, with("info", strings.Replace(at("a.caibx"), "hush-query", "hush-no", 1))...)
	do(-1, with("verify", at("moved/a.caibx"), "--patience", "1s")...)
	do(-1, with("info", at("absent.caibx"))...)
	do(-1, with("info", at("page.caibx"))...)
	do(-1, with("assemble", at("a.caibx"), filepath.Join(dir, "no"), "--patience", "1s", "-s", at("absent.castr"))...)
	do(-1, with("assemble", at("a.caibx"), filepath.Join(dir, "no"), "--patience", "1s", "-s", at("moved/default.castr"))...)
	do(-1, with("assemble", strings.Replace(at("a.caibx"), root.Host, "127.0.0.1:1", 1), filepath.Join(dir, "no"), "--patience", "1s")...)
	do(-1, with("make", at("new.caibx"), r.a, "--patience", "1s")...)
	do(-1, with("make", strings.Replace(at("new.caibx"), root.Host, "127.0.0.1:1", 1), r.a, "--patience", "1s")...)
	do(-1, with("store", "copy", filepath.Join(r.dir, "default.castr"), strings.Replace(at("x"), root.Host, "127.0.0.1:1", 1), r.index("a"), "--patience", "1s")...)
	do(-1, "info", at("a.caibx"), "--header-file", broken)
	do(-1, "info", at("a.caibx"), "--bearer-token-file", broken)
	do(-1, "info", at("a.caibx"), "--basic-auth-file", broken)
	do(-1, with("info", server.Location("images/v1/a.caibx", ""))...)
	do(-1, with("info", inS3)...)
	do(2, "info", strings.Replace(inS3, "://", "://key:hush-s3@", 1))
	do(2, "info", "sftp://me:hush-sftp@127.0.0.1:1/x.caibx")
	do(-1, "verify", "sftp://127.0.0.1:1/x.caibx", "--patience", "1s")
	for _, bad := range []string{
		"http://u:hush/x@h:x/y", "gopher://u:hush-b@h/y?hush-c", "s3+https://u:hush@h/bkt/%zzhush",
	} {
		do(2, "verify", r.index("a"), "-s", bad+"|"+bad)
		do(2, "verify", r.index("a"), bad)
		do(2, "assemble", r.index("a"), bad)
		do(2, "assemble", r.index("a"), out, "--seed", bad)
		do(2, "assemble", r.index("a"), out, "--cache", bad)
		do(2, "serve", r.index("a"), "--pidfile", bad)
		do(2, "disk", bad)
		do(2, bad)
		do(2, "store", bad)
		do(2, "info", bad, bad, bad)
		do(2, "make", r.index("a"), r.a, "--jobs", bad)
		do(2, "make", r.index("a"), r.a, "-q"+bad)
	}
	t.Run("proxy", func(t *testing.T) {
		for _, proxy := range []string{"http://u:hush-p@127.0.0.1:1", "http://u:hush p@127.0.0.1:x"} {
			t.Setenv("HTTP_PROXY", proxy)
			do(-1, with("verify", strings.Replace(at("a.caibx"), "127.0.0.1", "images.example.com", 1), "--patience", "1s")...)
		}
	})

	s := serve(t, 1, with("-v", at("a.caibx"), "--metrics", "tcp:127.0.0.1:0", "--cache", cache, "--record", filepath.Join(dir, "a.caprf"),
		"-s", at("absent.castr")+"|"+at("default.castr"), "--listen", "unix:"+filepath.Join(socketDir(t), "s"))...)
	must(t, "nbdcopy", s.uris[0], filepath.Join(dir, "copy"))
	say("nbdinfo", run(t, "nbdinfo", "--list", s.uris[0]))
	page := webOf(t, s)
	for _, path := range []string{"/", "/metrics", "/status.json"} {
		say("GET "+path, run(t, "curl", "-s", page+strings.TrimPrefix(path, "/")))
	}
	say("status", run(t, "cairn", "status", page))
	s.signal(t, syscall.SIGTERM)
	say("serve", s.wait(t))

	for _, root := range []string{dir, state, cache} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || path == header || path == token || path == broken {
				return err
			}
			data, err := os.ReadFile(path)
			if strings.Contains(string(data)+path, secret) {
				t.Errorf("%s holds a secret", path)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	for line := range strings.Lines(shown.String()) {
		if strings.Contains(line, secret) {
			t.Errorf("a secret is shown: %s", line)
		}
	}
}

// TestChildEnvironment: ssh and the program of --exec get no credentials from the environment, and everything else.
func TestChildEnvironment(t *testing.T) {
	for _, name := range []string{"CAIRN_BEARER_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"} {
		t.Setenv(name, secret)
	}
	t.Setenv("HTTPS_PROXY", "http://user:"+secret+"@127.0.0.1:1")
	t.Setenv("SLOT", "b")
	dir := t.TempDir()
	program := func(name, text string) string {
		path := writeFile(t, dir, name, []byte("#!/bin/sh\nenv >\""+filepath.Join(dir, name+".env")+"\"\n"+text))
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Setenv("CAIRN_SSH", program("ssh", "echo Permission denied >&2; exit 255\n"))
	r := noise(t, mib)
	cairn(t, "assemble", r.index("b"), filepath.Join(dir, "out"), "--exec", program("hook", "cat >/dev/null\n"))
	fails(t, notFound, "Permission denied", "info", "sftp://host/x.caibx")
	for _, name := range []string{"hook", "ssh"} {
		got := "\n" + string(readFile(t, filepath.Join(dir, name+".env")))
		if strings.Contains(got, secret) {
			t.Errorf("%s gets a credential:\n%s", name, got)
		}
		for _, want := range []string{"SLOT=b", "HTTPS_PROXY=http://127.0.0.1:1", "PATH=" + os.Getenv("PATH")} {
			if !strings.Contains(got, "\n"+want+"\n") {
				t.Errorf("%s lacks %s:\n%s", name, want, got)
			}
		}
	}
}
