package web_test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/store"
	"cairn/store/web"
)

func TestForms(t *testing.T) {
	for _, test := range []struct {
		name, text string
		form       web.Form
		want       string // header fields as they are sent, "" is refused
	}{
		{"bearer", "abc.DEF-_~+/=", web.Bearer, "Authorization: Bearer abc.DEF-_~+/="},
		{"bearer with a line's end", "abc\r\n", web.Bearer, "Authorization: Bearer abc"},
		{"empty bearer", "\n", web.Bearer, ""},
		{"two lines", "abc\ndef\n", web.Bearer, ""},
		{"space", "Bearer abc", web.Bearer, ""},
		{"not ASCII", "äbc", web.Bearer, ""},
		{"basic", "user:a b:ü\n", web.Basic, "Authorization: Basic dXNlcjphIGI6w7w="},
		{"basic without password", "user", web.Basic, ""},
		{"basic in two lines", "user:\npass", web.Basic, ""},
		{"headers", "X-Key: one\n\nx-other:  two words \nX-Key: three\n", web.Headers, "X-Key: one\r\nX-Key: three\r\nX-Other: two words"},
		{"no headers", "\n\n", web.Headers, ""},
		{"nothing", "", web.Headers, ""},
		{"no name", ": x", web.Headers, ""},
		{"no colon", "X-Key", web.Headers, ""},
		{"space in the name", "X Key: x", web.Headers, ""},
		{"control character", "X-Key: a\rb", web.Headers, ""},
		{"the transport's", "transfer-encoding: chunked", web.Headers, ""},
		{"the transport's too", "X-Key: a\nHOST: x", web.Headers, ""},
	} {
		header, err := test.form(test.text)
		var got bytes.Buffer
		header.Write(&got)
		if (err == nil) != (test.want != "") || strings.TrimSpace(got.String()) != test.want {
			t.Errorf("%s: %q, %v; want %q", test.name, got.String(), err, test.want)
		}
	}
}

// FuzzForms: the header made from any file's content holds only the fields that it may set.
func FuzzForms(f *testing.F) {
	for _, seed := range []string{"token", "user:pass", "A: b\nC: d", "A:\r\n b", "\x00", "Host: x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, form := range []web.Form{web.Bearer, web.Basic, web.Headers} {
			header, err := form(text)
			if err != nil {
				continue
			}
			fields := 0
			for name, values := range header {
				fields += len(values)
				if strings.ContainsAny(name+strings.Join(values, ""), "\r\n\x00") || strings.EqualFold(name, "host") {
					t.Errorf("%q gives %q: %q", text, name, values)
				}
			}
			var sent bytes.Buffer
			header.Write(&sent)
			if lines := strings.Count(sent.String(), "\n"); lines != fields || fields == 0 {
				t.Errorf("%q gives %d fields in %d lines", text, fields, lines)
			}
		}
	})
}

// TestScope: credentials are sent only to their own hosts.
func TestScope(t *testing.T) {
	var last *http.Request
	url := serve(t, func(_ http.ResponseWriter, r *http.Request) { last = r })
	host := strings.TrimPrefix(url, "http://")
	port := host[strings.LastIndex(host, ":"):]
	withUser := strings.Replace(url, "://", "://user:pass@", 1)
	for name, test := range map[string]struct {
		base  string
		hosts []string // of credentials, ...
		want  string   // those that are sent, in the order of their names
	}{
		"all hosts":    {url, []string{""}, "0"},
		"this host":    {url, []string{host}, "0"},
		"another port": {url, []string{"127.0.0.1", "127.0.0.1:1"}, ""},
		"another name": {url, []string{"localhost" + port}, ""},
		"case":         {"http://LOCALHOST" + port, []string{"localhost" + port}, "0"},
		"several":      {url, []string{"", "example.com", host}, "0 2"},
		"and a user":   {withUser, []string{host}, "0 Authorization"},
	} {
		o := web.Options{}
		for i, host := range test.hosts {
			c, err := web.FromText(web.Headers, host, fmt.Sprintf("X-%d: x\nX-Last: %d\n", i, i))
			if err != nil {
				t.Fatal(err)
			}
			o.Credentials = append(o.Credentials, c)
		}
		if _, err := newReader(t, test.base, o).Read(t.Context(), "x", nil, 10); err != nil {
			t.Fatal(err)
		}
		var sent []string
		for i := range test.hosts {
			if last.Header.Get(fmt.Sprint("X-", i)) != "" {
				sent = append(sent, fmt.Sprint(i))
			}
		}
		if last.Header.Get("Authorization") != "" {
			sent = append(sent, "Authorization")
		}
		if got := strings.Join(sent, " "); got != test.want {
			t.Errorf("%s: credentials %q are sent, want %q", name, got, test.want)
		}
	}
}

// TestHostCredentialsOverride: credentials for a host override those for all hosts in any order,
// and the URL's override both.
func TestHostCredentialsOverride(t *testing.T) {
	var last *http.Request
	url := serve(t, func(_ http.ResponseWriter, r *http.Request) { last = r })
	own, err := web.FromText(web.Bearer, strings.TrimPrefix(url, "http://"), "own")
	if err != nil {
		t.Fatal(err)
	}
	o := web.Options{Credentials: []*web.Credential{own, bearing(t, "any").Credentials[0]}}
	for base, want := range map[string]string{url: "Bearer own", strings.Replace(url, "://", "://u:p@", 1): "Basic dTpw"} {
		if _, err := newReader(t, base, o).Read(t.Context(), "x", nil, 10); err != nil {
			t.Fatal(err)
		}
		if got := last.Header.Get("Authorization"); got != want {
			t.Errorf("with %s: %q is sent, want %q", base, got, want)
		}
	}
}

// TestPlainHTTP: over plain http, credentials are sent to loopback hosts only. 0.0.0.0 does not
// count as one, although it leads to this machine.
func TestPlainHTTP(t *testing.T) {
	var last *http.Request
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		last = r
		w.WriteHeader(http.StatusUnauthorized)
	})
	url = strings.Replace(url, "127.0.0.1", "0.0.0.0", 1)
	_, err := newReader(t, url, bearing(t, token)).Read(t.Context(), "x", nil, 10)
	checkFault(t, nil, err, store.ErrDenied)
	if last.Header.Get("Authorization") != "" || !strings.Contains(fmt.Sprint(err), "not sent over plain http") {
		t.Errorf("Read = %v, and %q was sent", err, last.Header.Get("Authorization"))
	}
	own, err := web.FromText(web.Bearer, strings.TrimPrefix(url, "http://"), token)
	if err != nil {
		t.Fatal(err)
	}
	_, err = web.New(parse(t, url), web.Options{Credentials: []*web.Credential{own}})
	if err == nil || !strings.Contains(err.Error(), "plain http") || strings.Contains(err.Error(), token) {
		t.Errorf("New with credentials for just this server = %v, want a refusal", err)
	}
}

func TestCredentialFileRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	if _, err := web.FromFile(nil, web.Bearer, "", path); err == nil {
		t.Error("FromFile of an absent file succeeded")
	}
	if err := os.WriteFile(path, []byte("two words"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := web.FromFile(nil, web.Bearer, "", path)
	if err == nil || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "two words") {
		t.Errorf("FromFile = %v, want the path in it, and not the text", err)
	}
}
