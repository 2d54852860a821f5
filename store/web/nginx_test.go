package web_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/internal/tlsfiles"
	"cairn/store"
	"cairn/store/storetest"
	"cairn/store/web"
)

const token = "eyJhbGciOi.secret-token_~+/=="

// guarded is an nginx that demands authentication, with options that it accepts.
type guarded struct {
	url  string // with a password or signature, if that authenticates the client
	with web.Options
	bad  web.Options // options that it denies
}

// doors start servers over a directory, each with a different kind of authentication.
var doors = map[string]func(t *testing.T, dir string, directives ...string) guarded{
	"http": func(t *testing.T, dir string, directives ...string) guarded {
		return guarded{url: storetest.Nginx(t, dir, directives...)}
	},
	"private authority": func(t *testing.T, dir string, directives ...string) guarded {
		a := storetest.NewAuthority(t)
		return guarded{url: storetest.NginxTLS(t, dir, a, directives...), with: trusting(t, tlsfiles.Files{CA: a.Cert})}
	},
	"client certificate": func(t *testing.T, dir string, directives ...string) guarded {
		a := storetest.NewAuthority(t)
		cert, key := a.Client(t, "device")
		url := storetest.NginxTLS(t, dir, a, append(directives, wantsCertificate(a))...)
		return guarded{url, trusting(t, tlsfiles.Files{CA: a.Cert, Cert: cert, Key: key}), trusting(t, tlsfiles.Files{CA: a.Cert})}
	},
	"bearer": func(t *testing.T, dir string, directives ...string) guarded {
		guard := fmt.Sprintf(`if ($http_authorization != "Bearer %s") { return 401; }`, token)
		return guarded{storetest.Nginx(t, dir, append(directives, guard)...), bearing(t, token), bearing(t, "other")}
	},
	"basic": func(t *testing.T, dir string, directives ...string) guarded {
		users := writeFile(t, filepath.Join(t.TempDir(), "htpasswd"), "publisher:{PLAIN}s3cret word\n")
		guard := "auth_basic store; auth_basic_user_file " + users + ";"
		return guarded{storetest.Nginx(t, dir, append(directives, guard)...), having(t, web.Basic, "publisher:s3cret word\n"), web.Options{}}
	},
	"basic in the URL": func(t *testing.T, dir string, directives ...string) guarded {
		users := writeFile(t, filepath.Join(t.TempDir(), "htpasswd"), "publisher:{PLAIN}s3cret word\n")
		guard := "auth_basic store; auth_basic_user_file " + users + ";"
		url := storetest.Nginx(t, dir, append(directives, guard)...)
		return guarded{url: strings.Replace(url, "://", "://publisher:s3cret%20word@", 1)}
	},
	"header": func(t *testing.T, dir string, directives ...string) guarded {
		guard := `if ($http_x_access_key != "abc") { return 403; }`
		return guarded{storetest.Nginx(t, dir, append(directives, guard)...), having(t, web.Headers, "X-Access-Key: abc\n"), web.Options{}}
	},
	"signed": func(t *testing.T, dir string, directives ...string) guarded {
		guard := `if ($args != "expires=99&sig=a%2Fb%3D") { return 403; }`
		return guarded{url: storetest.Nginx(t, dir, append(directives, guard)...) + "/?expires=99&sig=a%2Fb%3D"}
	},
}

func wantsCertificate(a *storetest.Authority) string {
	return fmt.Sprintf("ssl_client_certificate %s; ssl_verify_client on;", a.Cert)
}

func trusting(t *testing.T, files tlsfiles.Files) web.Options {
	t.Helper()
	config, err := files.Config(nil)
	if err != nil {
		t.Fatal(err)
	}
	return web.Options{TLS: config}
}

func bearing(t *testing.T, token string) web.Options { return having(t, web.Bearer, token) }

func having(t *testing.T, form web.Form, text string) web.Options {
	t.Helper()
	c, err := web.FromText(form, "", text)
	if err != nil {
		t.Fatal(err)
	}
	return web.Options{Credentials: []*web.Credential{c}}
}

func writeFile(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// below returns the URL of a directory below a base.
func below(base, dir string) string {
	bare, query, signed := strings.Cut(base, "?")
	bare = strings.TrimSuffix(bare, "/") + "/" + dir
	if signed {
		bare += "?" + query
	}
	return bare
}

// inShort is the door with which the whole suite of readers runs under -short.
const inShort = "client certificate"

// TestNginx: objects are read with each kind of authentication.
func TestNginx(t *testing.T) {
	for name, door := range doors {
		t.Run(name, func(t *testing.T) {
			if testing.Short() && name != inShort {
				t.Skip("TestNginxGuards goes through it")
			}
			storetest.Test(t, func(t *testing.T) (store.Reader, storetest.Put) {
				dir := t.TempDir()
				put := func(name string, data []byte) {
					path := filepath.Join(dir, "the store", name)
					err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644))
					if err != nil {
						t.Fatal(err)
					}
				}
				at := door(t, dir)
				return newReader(t, below(at.url, "the%20store/"), at.with), put
			})
		})
	}
}

// TestNginxWebDAV: objects are written over http and https. TestNginxGuards writes with each kind
// of authentication.
func TestNginxWebDAV(t *testing.T) {
	for _, name := range []string{"http", "client certificate"} {
		t.Run(name, func(t *testing.T) {
			if testing.Short() && name != "http" {
				t.Skip("TestNginxGuards goes through it")
			}
			door := doors[name]
			storetest.TestBucket(t, func(t *testing.T) store.Bucket {
				at := door(t, t.TempDir(), storetest.WebDAV)
				return newBucket(t, below(at.url, "new/the%20store"), at.with)
			})
		})
	}
}

// TestNginxGuards: an authenticated client reads and writes, and every call of another client is
// denied.
func TestNginxGuards(t *testing.T) {
	for name, door := range doors {
		at := door(t, t.TempDir(), storetest.WebDAV)
		b, want := newBucket(t, below(at.url, "new"), at.with), storetest.Bytes(1, 2<<20)
		if err := b.Write(t.Context(), "dir/x", want); err != nil {
			t.Errorf("%s: Write: %v", name, err)
		}
		if got, err := b.Read(t.Context(), "dir/x", nil, 3<<20); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: Read = %d bytes, %v; want those that were written", name, len(got), err)
		}
		if _, _, guarded := strings.Cut(at.url, "?"); guarded || strings.Contains(at.url, "@") {
			at.url, _, _ = strings.Cut(at.url, "?")
			at.url = strings.Replace(at.url, "publisher", "other", 1)
		} else if at.bad.TLS == nil && at.with.Credentials == nil {
			continue // the server has no authentication
		}
		t.Run(name, func(t *testing.T) {
			b := newBucket(t, at.url, at.bad)
			_, readErr := b.Read(t.Context(), "x", nil, 10)
			_, statErr := b.Stat(t.Context(), "x")
			for _, err := range []error{readErr, statErr, b.Write(t.Context(), "x", []byte("x"))} {
				checkFault(t, nil, err, store.ErrDenied)
				if errors.Is(err, web.ErrNoCertificate) != (at.bad.TLS != nil) {
					t.Errorf("%v: it is said to be for want of a certificate, or not", err)
				}
			}
		})
	}
}

// TestNginxDenies: nginx denies to read a directory.
func TestNginxDenies(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "abcd"), 0o755); err != nil {
		t.Fatal(err)
	}
	r := newReader(t, storetest.Nginx(t, dir), web.Options{})
	if _, err := r.Read(t.Context(), "abcd", nil, 10); !errors.Is(err, store.ErrDenied) {
		t.Errorf("Read = %v, want ErrDenied", err)
	}
}

// TestNginxWriteFails: the errors for writes that nginx refuses.
func TestNginxWriteFails(t *testing.T) {
	small := strings.Replace(storetest.WebDAV, "64m", "1m", 1)
	for name, test := range map[string]struct {
		directives string
		size       int
		want       error
		words      string
	}{
		"read only": {"", 10, nil, "takes no uploads"},
		"too large": {small, 2 << 20, nil, "larger than the server takes"},
		"forbidden": {storetest.WebDAV + "limit_except GET { deny all; }", 10, store.ErrDenied, "403"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			location := "location / { " + test.directives + " }"
			err := newBucket(t, storetest.Nginx(t, dir, location), web.Options{}).Write(t.Context(), "x", make([]byte, test.size))
			checkFault(t, nil, err, test.want)
			if !strings.Contains(fmt.Sprint(err), test.words) {
				t.Errorf("Write = %v, want %q in it", err, test.words)
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
				t.Errorf("the refused Write leaves %q", left)
			}
		})
	}
}

// TestTokenRotates: a Bucket uses a new token in the file, even if the file's size and time are the
// same.
func TestTokenRotates(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	writeFile(t, path, "one\n")
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	valid := "one"
	authority := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+valid {
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "x"), "data")
	url := storetest.Nginx(t, dir, `location / { auth_request /auth; `+storetest.WebDAV+` }
		location = /auth { internal; proxy_pass `+authority+`; proxy_pass_request_body off; proxy_set_header Content-Length ""; }`)
	c, err := web.FromFile(nil, web.Bearer, "", path)
	if err != nil {
		t.Fatal(err)
	}
	b := newBucket(t, url, web.Options{Credentials: []*web.Credential{c}})
	for _, valid = range []string{"one", "two", "six"} {
		writeFile(t, path, valid+"\n")
		if err := os.Chtimes(path, info.ModTime(), info.ModTime()); err != nil {
			t.Fatal(err)
		}
		if got, err := b.Read(t.Context(), "x", nil, 10); err != nil || string(got) != "data" {
			t.Errorf("Read with token %s = %q, %v", valid, got, err)
		}
		if err := b.Write(t.Context(), "new/"+valid, []byte("x")); err != nil {
			t.Errorf("Write with token %s: %v", valid, err)
		}
	}
	valid = "unknown"
	_, err = b.Read(t.Context(), "x", nil, 10)
	checkFault(t, nil, err, store.ErrDenied)
	writeFile(t, path, "bad token")
	_, err = b.Read(t.Context(), "x", nil, 10)
	checkFault(t, nil, err, store.ErrDenied)
	if !strings.Contains(fmt.Sprint(err), path) || strings.Contains(fmt.Sprint(err), "bad token") {
		t.Errorf("Read with a token that is none = %v, want the file's name in it, and not its text", err)
	}
}

// TestCertificateRotates: a Bucket uses the new client certificate after the old one has expired.
func TestCertificateRotates(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "x"), "data")
	a := storetest.NewAuthority(t)
	cert, key := a.Issue(t, "device", storetest.ClientTemplate(-1, "device"))
	// Each request has its own connection, and so its own handshake.
	url := storetest.NginxTLS(t, dir, a, wantsCertificate(a), "keepalive_timeout 0;")
	r := newReader(t, url, trusting(t, tlsfiles.Files{CA: a.Cert, Cert: cert, Key: key}))
	_, err := r.Read(t.Context(), "x", nil, 10)
	checkFault(t, nil, err, store.ErrDenied)
	if !errors.Is(err, web.ErrNoCertificate) {
		t.Errorf("Read with an expired certificate = %v, want ErrNoCertificate", err)
	}
	a.Client(t, "device")
	fresh, freshKey := a.Client(t, "device")
	copyFile(t, cert, fresh)
	copyFile(t, key, freshKey)
	if got, err := r.Read(t.Context(), "x", nil, 10); err != nil || string(got) != "data" {
		t.Errorf("Read with the new certificate = %q, %v", got, err)
	}
	writeFile(t, cert, "half of it")
	if got, err := r.Read(t.Context(), "x", nil, 10); err != nil || string(got) != "data" {
		t.Errorf("Read beside a half-written certificate = %q, %v", got, err)
	}
}

func copyFile(t *testing.T, to, from string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, to, string(text))
}

// TestSecretsAreNotShown: errors, String and the printed structs contain no secrets.
func TestSecretsAreNotShown(t *testing.T) {
	for name, door := range doors {
		at := door(t, t.TempDir())
		bases := map[string]string{"absent": at.url, "dead": deadURL(at.url)}
		for state, base := range bases {
			r := newReader(t, base, at.with)
			_, err := r.Read(t.Context(), "x", nil, 10)
			basic := base64.StdEncoding.EncodeToString([]byte("publisher:s3cret word"))
			text := fmt.Sprintf("%v %v %+v %#v %+v", err, r, at.with, at.with, at.with.Credentials)
			for _, secret := range []string{token, "s3cret", basic, "a%2Fb", "abc", "sig="} {
				if strings.Contains(text, secret) {
					t.Errorf("%s, %s: %s shows %q", name, state, text, secret)
				}
			}
		}
	}
}

// deadURL returns the URL with a port on which no server listens.
func deadURL(url string) string {
	at := strings.LastIndex(url, ":")
	_, path, _ := strings.Cut(url[at:], "/")
	return url[:at] + ":1/" + path
}

func parse(t *testing.T, text string) web.Location {
	t.Helper()
	l, err := web.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func newReader(t *testing.T, base string, o web.Options) *web.Bucket {
	t.Helper()
	r, err := web.New(parse(t, base), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func newBucket(t *testing.T, base string, o web.Options) *web.Bucket {
	t.Helper()
	b, err := web.New(parse(t, base), o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
