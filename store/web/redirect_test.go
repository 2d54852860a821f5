package web_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"cairn/internal/tlsfiles"
	"cairn/store"
	"cairn/store/storetest"
	"cairn/store/web"
)

// origin is a server that redirects or answers, and keeps its requests.
type origin struct {
	url string
	to  string // the target of redirects; "" answers
	got []*http.Request
}

func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o.got = append(o.got, r.Clone(r.Context()))
	if o.to == "" {
		io.WriteString(w, "moved")
		return
	}
	w.Header().Set("Set-Cookie", "session=hush")
	w.Header().Set("Location", o.to)
	w.WriteHeader(http.StatusTemporaryRedirect)
}

func newOrigin(t *testing.T, to string) *origin {
	o := &origin{to: to}
	o.url = serve(t, o.ServeHTTP)
	return o
}

func newSecureOrigin(t *testing.T, a *storetest.Authority, to string) *origin {
	t.Helper()
	o := &origin{to: to}
	pair, err := tls.LoadX509KeyPair(a.Server(t, "127.0.0.1", "localhost"))
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(o)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert}
	s.StartTLS()
	t.Cleanup(s.Close)
	o.url = s.URL
	return o
}

// shows lists the secrets and identifying fields of the last request.
func (o *origin) shows() string {
	r := o.got[len(o.got)-1]
	var shown []string
	for _, name := range []string{"Authorization", "Cookie", "X-Key", "Referer", "Proxy-Authorization"} {
		if r.Header.Get(name) != "" {
			shown = append(shown, name)
		}
	}
	if r.URL.RawQuery != "" {
		shown = append(shown, "query")
	}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		shown = append(shown, "certificate")
	}
	return strings.Join(shown, " ")
}

// laden returns options with every kind of credential.
func laden(t *testing.T, a *storetest.Authority) web.Options {
	t.Helper()
	cert, key := a.Client(t, "device")
	o := trusting(t, tlsfiles.Files{CA: a.Cert, Cert: cert, Key: key})
	o.Credentials = append(bearing(t, token).Credentials, having(t, web.Headers, "X-Key: hush").Credentials...)
	return o
}

// TestRedirectsShowNothing: a redirect to another origin sends no credentials there.
func TestRedirectsShowNothing(t *testing.T) {
	a := storetest.NewAuthority(t)
	all := "Authorization X-Key"
	plain, secure := newOrigin(t, ""), newSecureOrigin(t, a, "")
	localhost := strings.Replace(plain.url, "127.0.0.1", "localhost", 1)
	for name, test := range map[string]struct {
		start, last *origin
		want        string // the credentials that the last origin gets; "-" if it gets no request
	}{
		"none, http":     {plain, plain, all + " query"},
		"none, https":    {secure, secure, all + " query certificate"},
		"other port":     {newOrigin(t, plain.url+"/x"), plain, ""},
		"other host":     {newOrigin(t, localhost+"/x"), plain, ""},
		"user in it":     {newOrigin(t, strings.Replace(plain.url, "://", "://u:p@", 1)+"/x"), plain, ""},
		"two steps":      {newOrigin(t, newOrigin(t, plain.url+"/x").url+"/x"), plain, ""},
		"other TLS port": {newSecureOrigin(t, a, secure.url+"/x"), secure, ""},
		"to https":       {newOrigin(t, secure.url+"/x"), secure, ""},
		"to http":        {newSecureOrigin(t, a, plain.url+"/x"), plain, "-"},
		"to ftp":         {newOrigin(t, "ftp://127.0.0.1/x"), plain, "-"},
		"to a file":      {newOrigin(t, "file:///etc/passwd"), plain, "-"},
		"to nothing":     {newOrigin(t, "http:///x"), plain, "-"},
		"to rubbish":     {newOrigin(t, "http://%zz/?sig=hush"), plain, "-"},
	} {
		plain.got, secure.got = nil, nil
		r := newReader(t, test.start.url+"/?sig=hush", laden(t, a))
		got, err := r.Read(t.Context(), "x", nil, 10)
		if strings.Contains(fmt.Sprint(err), "hush") {
			t.Errorf("%s: %v shows the query", name, err)
		}
		if test.want == "-" {
			checkFault(t, nil, err, nil)
			if len(plain.got)+len(secure.got) > 0 || !strings.Contains(fmt.Sprint(err), "redirect refused") {
				t.Errorf("%s: Read = %v, want it refused before the last server is asked", name, err)
			}
			continue
		}
		if err != nil || string(got) != "moved" {
			t.Errorf("%s: Read = %q, %v", name, got, err)
		} else if shown := test.last.shows(); shown != test.want {
			t.Errorf("%s: the last server sees %q, want %q", name, shown, test.want)
		}
		if size, err := r.Stat(t.Context(), "x"); err != nil || size != 5 {
			t.Errorf("%s: Stat = %d, %v", name, size, err)
		}
	}
}

// TestRedirectAtHome: a redirect within the origin keeps the credentials, and sets the query.
func TestRedirectAtHome(t *testing.T) {
	var last *http.Request
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if last = r; r.URL.Path == "/x" {
			http.Redirect(w, r, "/there?token=1", http.StatusFound)
		}
	})
	if _, err := newReader(t, url+"/?sig=hush", bearing(t, token)).Read(t.Context(), "x", nil, 10); err != nil {
		t.Fatal(err)
	}
	if last.RequestURI != "/there?token=1" || last.Header.Get("Authorization") != "Bearer "+token {
		t.Errorf("asked for %s with %q", last.RequestURI, last.Header.Get("Authorization"))
	}
}

// TestRedirectBackHome: a redirect from another origin back to the first gets no credentials.
func TestRedirectBackHome(t *testing.T) {
	home := &origin{}
	home.url = serve(t, func(w http.ResponseWriter, r *http.Request) {
		home.ServeHTTP(w, r)
		home.to = ""
	})
	home.to = newOrigin(t, home.url+"/x").url + "/x"
	if _, err := newReader(t, home.url, laden(t, storetest.NewAuthority(t))).Read(t.Context(), "x", nil, 10); err != nil {
		t.Fatal(err)
	}
	if shown := home.shows(); len(home.got) != 2 || shown != "" {
		t.Errorf("after %d requests the first server sees %q, want nothing", len(home.got), shown)
	}
}

// TestSlowRedirect: a redirect is followed although its page does not end.
func TestSlowRedirect(t *testing.T) {
	base := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/there" {
			io.WriteString(w, "data")
			return
		}
		w.Header().Set("Location", "/there")
		w.Header().Set("Content-Length", "1000")
		w.WriteHeader(http.StatusFound)
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	r, err := web.New(parse(t, base), impatient)
	if err != nil {
		t.Fatal(err)
	}
	got, err := r.Read(t.Context(), "x", nil, 100)
	if err != nil || string(got) != "data" {
		t.Errorf("Read = %q, %v", got, err)
	}
}

func TestRedirectsEnd(t *testing.T) {
	last := newOrigin(t, "")
	url := last.url
	for range 5 {
		url = newOrigin(t, url+"/x").url
	}
	if _, err := newReader(t, url, web.Options{}).Read(t.Context(), "x", nil, 10); err != nil {
		t.Errorf("Read through 5 redirects: %v", err)
	}
	_, err := newReader(t, newOrigin(t, url+"/x").url, web.Options{}).Read(t.Context(), "x", nil, 10)
	checkFault(t, nil, err, nil)
}

// TestRedirectedWriteIsRefused: a redirected write is refused, also within the origin.
func TestRedirectedWriteIsRefused(t *testing.T) {
	other := newOrigin(t, "")
	for _, code := range []int{301, 302, 303, 307, 308} {
		for _, to := range []string{other.url + "/x", "/there"} {
			url := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/x" || r.Method != http.MethodPut {
					t.Errorf("%s of %s", r.Method, r.URL.Path)
				}
				http.Redirect(w, r, to, code)
			})
			err := newBucket(t, url, web.Options{}).Write(t.Context(), "x", []byte("x"))
			checkFault(t, nil, err, nil)
			if !strings.Contains(fmt.Sprint(err), "redirect refused: a write goes to the server") {
				t.Errorf("Write with a redirect by %d = %v", code, err)
			}
		}
	}
	if len(other.got) > 0 {
		t.Errorf("the other server was asked: %s", other.got[0].Method)
	}
}

// TestLogin: portals that redirect to a login form, or answer with one, are reported as
// unavailable.
func TestLogin(t *testing.T) {
	form := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		io.WriteString(w, "<html><form>")
	})
	for name, url := range map[string]string{"redirect": newOrigin(t, form+"/login?from=x").url, "form": form} {
		b := newBucket(t, url, web.Options{})
		_, readErr := b.Read(t.Context(), "x", nil, 1000)
		_, statErr := b.Stat(t.Context(), "x")
		for _, err := range []error{readErr, statErr} {
			checkFault(t, nil, err, nil)
			suspect, is := errors.AsType[*store.SuspectError](err)
			if !is || !errors.Is(suspect.Err, store.ErrUnavailable) || !strings.Contains(fmt.Sprint(err), "login form") || name == "redirect" && !strings.Contains(fmt.Sprint(err), "redirected to "+form) {
				t.Errorf("%s: %v, want it to speak of a login form, and where", name, err)
			}
		}
		var want error // a redirected write is refused
		if name == "form" {
			want = store.ErrUnavailable
		}
		checkFault(t, nil, b.Write(t.Context(), "x", nil), want)
	}
}

// TestDeniedElsewhere: the error says that the other origin got no credentials.
func TestDeniedElsewhere(t *testing.T) {
	url := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) })
	start := newOrigin(t, url+"/x").url
	_, err := newReader(t, start, bearing(t, token)).Read(t.Context(), "x", nil, 10)
	checkFault(t, nil, err, store.ErrDenied)
	if !strings.Contains(fmt.Sprint(err), "credentials are sent to "+start+" only") {
		t.Errorf("Read = %v", err)
	}
}

// TestCertificates: the error says what is wrong with a server's certificate, and is not retried.
func TestCertificates(t *testing.T) {
	a, other := storetest.NewAuthority(t), storetest.NewAuthority(t)
	cert, key := a.Issue(t, "expired", storetest.ServerTemplate(-1, "127.0.0.1"))
	expired := listenTLS(t, cert, key, 0)
	cert, key = a.Server(t, "store.example.com")
	named := listenTLS(t, cert, key, 0)
	cert, key = a.Server(t, "127.0.0.1")
	good := listenTLS(t, cert, key, 0)
	old := listenTLS(t, cert, key, tls.VersionTLS11)
	for name, test := range map[string]struct {
		url   string
		ca    string
		check func(error) bool
	}{
		"unknown authority": {good, other.Cert, is[x509.UnknownAuthorityError]},
		"system's trust":    {good, "", is[x509.UnknownAuthorityError]},
		"expired":           {expired, a.Cert, is[x509.CertificateInvalidError]},
		"another's name":    {named, a.Cert, is[x509.HostnameError]},
		"TLS 1.1":           {old, a.Cert, func(err error) bool { return strings.Contains(fmt.Sprint(err), "no TLS 1.2 or later") }},
		"https to http":     {strings.Replace(newOrigin(t, "").url, "http:", "https:", 1), a.Cert, isErrScheme},
		"http to https":     {strings.Replace(good, "https:", "http:", 1), a.Cert, isErrScheme},
		"http to nginx":     {strings.Replace(storetest.NginxTLS(t, t.TempDir(), a), "https:", "http:", 1), a.Cert, isErrScheme},
	} {
		r := newReader(t, test.url, trusting(t, tlsfiles.Files{CA: test.ca}))
		_, err := r.Read(t.Context(), "x", nil, 10)
		checkFault(t, nil, err, nil)
		if !test.check(err) {
			t.Errorf("%s: Read = %v", name, err)
		}
		_, err = r.Stat(t.Context(), "x")
		checkFault(t, nil, err, nil)
	}
}

// TestCertificateRequired: servers that abort the handshake instead of answering. In TLS 1.3 the
// alert may arrive after the request was sent, which can look like a lost connection. TLS 1.2 has
// no specific alert.
func TestCertificateRequired(t *testing.T) {
	a := storetest.NewAuthority(t)
	cert, key := a.Server(t, "127.0.0.1")
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	for version, ok := range map[uint16]func(error) bool{
		tls.VersionTLS12: func(err error) bool { return strings.Contains(fmt.Sprint(err), "or it wants a client certificate") },
		tls.VersionTLS13: func(err error) bool {
			return errors.Is(err, web.ErrNoCertificate) || errors.Is(err, store.ErrUnavailable)
		},
	} {
		s := httptest.NewUnstartedServer(http.NotFoundHandler())
		s.Config.ErrorLog = log.New(io.Discard, "", 0)
		s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MaxVersion: version, ClientAuth: tls.RequireAnyClientCert}
		s.StartTLS()
		t.Cleanup(s.Close)
		_, err = newReader(t, s.URL, trusting(t, tlsfiles.Files{CA: a.Cert})).Read(t.Context(), "x", nil, 10)
		if !ok(err) {
			t.Errorf("Read = %v", err)
		}
	}
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

func isErrScheme(err error) bool { return errors.Is(err, web.ErrScheme) }

// listenTLS starts a server with a maximum version of TLS; 0 is no limit.
func listenTLS(t *testing.T, cert, key string, most uint16) string {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS10, MaxVersion: most}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL
}
