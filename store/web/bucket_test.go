package web_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode"

	"cairn/blob"
	"cairn/store"
	"cairn/store/storetest"
	"cairn/store/web"
)

// impatient makes the tests of silence short.
var impatient = web.Options{Patience: 200 * time.Millisecond}

func serve(t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	return s.URL
}

// hijack answers with the given bytes and closes the connection.
func hijack(w http.ResponseWriter, raw string) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	conn.Write([]byte(raw))
	conn.Close()
}

func head(status string, fields ...string) string {
	return "HTTP/1.1 " + status + "\r\n" + strings.Join(fields, "\r\n") + "\r\n\r\n"
}

// TestFaults: each case is an answer and Read's error for it. A nil error in a case stands for an
// error that matches none of those that callers decide by.
func TestFaults(t *testing.T) {
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	raw := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { hijack(w, text) }
	}
	tests := map[string]struct {
		handler http.HandlerFunc
		want    error
	}{
		"404":       {status(404), store.ErrNotFound},
		"410":       {status(410), store.ErrNotFound},
		"401":       {status(401), store.ErrDenied},
		"403":       {status(403), store.ErrDenied},
		"407":       {status(407), store.ErrDenied},
		"408":       {status(408), store.ErrUnavailable},
		"429":       {status(429), store.ErrUnavailable},
		"500":       {status(500), store.ErrUnavailable},
		"503":       {status(503), store.ErrUnavailable},
		"204":       {status(204), nil},
		"206":       {status(206), nil},
		"400":       {status(400), nil},
		"300":       {status(300), nil},
		"301":       {status(301), nil}, // and no Location
		"304":       {status(304), nil},
		"402":       {status(402), store.ErrDenied},
		"405":       {status(405), nil},
		"416":       {status(416), nil},
		"425":       {status(425), store.ErrUnavailable},
		"451":       {status(451), store.ErrDenied},
		"501":       {status(501), nil},
		"505":       {status(505), nil},
		"507":       {status(507), store.ErrUnavailable},
		"511":       {status(511), store.ErrUnavailable},
		"599":       {status(599), store.ErrUnavailable},
		"999":       {raw(head("999 No", "Content-Length: 0")), store.ErrUnavailable},
		"no answer": {raw(""), store.ErrUnavailable},
		"no HTTP":   {raw("SSH-2.0-x\r\n\r\n"), store.ErrUnavailable},
		"truncated": {raw(head("200 OK", "Content-Length: 10") + "12345"), store.ErrUnavailable},
		"truncated chunked": {raw(head("200 OK", "Transfer-Encoding: chunked") + "5\r\n12345\r\n"),
			store.ErrUnavailable},
		"without end": {raw(head("200 OK", "Connection: close") + "0123456789"), nil},
		"too long":    {raw(head("200 OK", "Content-Length: 1000000000") + "1"), store.ErrTooLarge},
		"long chunked": {raw(head("200 OK", "Transfer-Encoding: chunked") + "ff\r\n" + strings.Repeat("1", 255)),
			store.ErrTooLarge},
		"web page": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			w.Write([]byte("<html>"))
		}, nil}, // see TestHeaderExplains
		"part unasked":    {raw(head("206 Partial Content", "Content-Range: bytes 0-4/10", "Content-Length: 5") + "12345"), nil},
		"gzip unasked":    {raw(head("200 OK", "Content-Encoding: gzip", "Content-Length: 5") + "12345"), nil},
		"two codings":     {raw(head("200 OK", "Content-Encoding: identity", "Content-Encoding: br", "Content-Length: 5") + "12345"), nil},
		"two lengths":     {raw(head("200 OK", "Content-Length: 5", "Content-Length: 6") + "12345"), store.ErrUnavailable},
		"negative length": {raw(head("200 OK", "Content-Length: -5") + "12345"), store.ErrUnavailable},
		"huge length":     {raw(head("200 OK", "Content-Length: 99999999999999999999") + "12345"), store.ErrUnavailable},
		"flood of 1xx":    {raw(strings.Repeat(head("103 Early Hints", "Link: </x>"), 10_000)), store.ErrUnavailable},
		"endless 1xx": {func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				w.WriteHeader(http.StatusEarlyHints)
			}
		}, store.ErrUnavailable},
		"many headers":       {raw("HTTP/1.1 200 OK\r\n" + strings.Repeat("X: y\r\n", 1<<16)), store.ErrUnavailable},
		"switches protocols": {raw(head("101 Switching Protocols", "Upgrade: h2c", "Connection: Upgrade")), nil},
		"status injects":     {raw("HTTP/1.1 403 \x1b[2J\r\nContent-Length: 0\r\n\r\n"), store.ErrDenied},
		"endless refusal":    {raw(head("403 Forbidden", "Content-Length: 1000000000") + "no"), store.ErrDenied},
		"silent refusal": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "100")
			w.WriteHeader(404)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, store.ErrNotFound},
		"endless header":  {raw("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20)), store.ErrUnavailable},
		"redirect circle": {http.RedirectHandler("/x", 302).ServeHTTP, nil},
		"silent":          {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, store.ErrUnavailable},
		"stalled": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "10")
			w.Write([]byte("12345"))
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, store.ErrUnavailable},
		"trickle": {trickle, store.ErrUnavailable},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := web.Options{} // a busy machine may be slow to connect
			if slices.Contains([]string{"silent", "silent refusal", "stalled", "trickle"}, name) {
				o = impatient
			}
			r := newReader(t, serve(t, test.handler), o)
			got, err := r.Read(t.Context(), "x", nil, 100)
			checkFault(t, got, err, test.want)
		})
	}
}

// TestStatFaults: only two statuses prove absence to Stat, as to Read.
func TestStatFaults(t *testing.T) {
	for status := 200; status < 600; status++ {
		if status == 200 || http.StatusText(status) == "" {
			continue
		}
		url := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
		r := newReader(t, url, web.Options{})
		_, statErr := r.Stat(t.Context(), "x")
		_, readErr := r.Read(t.Context(), "x", nil, 10)
		for _, kind := range []error{store.ErrNotFound, store.ErrDenied, store.ErrUnavailable} {
			if statErr == nil || errors.Is(statErr, kind) != errors.Is(readErr, kind) {
				t.Errorf("%d: Stat = %v, and Read = %v", status, statErr, readErr)
			}
		}
		if absent := status == 404 || status == 410; errors.Is(statErr, store.ErrNotFound) != absent {
			t.Errorf("%d: Stat = %v", status, statErr)
		}
	}
}

// trickle sends a byte at long intervals, slower than any patience, until the client disconnects.
func trickle(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Length", "90")
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-r.Context().Done():
			return
		case <-tick.C:
			w.Write([]byte("x"))
			w.(http.Flusher).Flush()
		}
	}
}

func checkFault(t *testing.T, got []byte, err, want error) {
	t.Helper()
	if err == nil {
		t.Fatalf("Read = %q, want an error", got)
	}
	if strings.ContainsFunc(err.Error(), unicode.IsControl) {
		t.Errorf("Read = %q, which is not fit for a terminal", err)
	}
	for _, class := range []error{store.ErrNotFound, store.ErrDenied, store.ErrUnavailable, store.ErrTooLarge} {
		if errors.Is(err, class) != (class == want) {
			t.Errorf("Read = %v, want %v", err, want)
		}
	}
}

func TestNoServer(t *testing.T) {
	s := httptest.NewServer(nil)
	s.Close()
	_, err := newReader(t, s.URL, web.Options{}).Read(t.Context(), "x", nil, 10)
	checkFault(t, nil, err, store.ErrUnavailable)
}

// wait delays a server's answer.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// TestSlowIsNotStalled: a transfer may take longer than the patience in total.
func TestSlowIsNotStalled(t *testing.T) {
	want := storetest.Bytes(1, 8*32<<10)
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(want)))
		for part := range 8 {
			wait(r.Context(), impatient.Patience/4)
			w.Write(want[part*32<<10 : (part+1)*32<<10])
			w.(http.Flusher).Flush()
		}
	})
	got, err := newReader(t, url, impatient).Read(t.Context(), "x", nil, 1<<20)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("Read = %d bytes, %v", len(got), err)
	}
}

func TestCancelWhileWaiting(t *testing.T) {
	asked := make(chan struct{})
	url := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		close(asked)
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	_, err := newReader(t, url, web.Options{}).Read(ctx, "x", nil, 10)
	if !errors.Is(err, context.Canceled) || errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Read = %v, want context.Canceled", err)
	}
}

func TestChunkedAnswer(t *testing.T) {
	want := storetest.Bytes(1, 100_000)
	url := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Write(want[:50_000])
		w.(http.Flusher).Flush()
		w.Write(want[50_000:])
	})
	got, err := newReader(t, url, web.Options{}).Read(t.Context(), "x", nil, 100_000)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("Read = %d bytes, %v", len(got), err)
	}
	if _, err := newReader(t, url, web.Options{}).Stat(t.Context(), "x"); err == nil {
		t.Error("Stat without a length succeeded")
	}
}

func TestConnectionsAreReused(t *testing.T) {
	var addresses atomic.Value
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if first := addresses.Swap(r.RemoteAddr); first != nil && first != r.RemoteAddr {
			t.Errorf("another connection: %s after %s", r.RemoteAddr, first)
		}
		w.Write(make([]byte, 1000))
	})
	r := newReader(t, url, web.Options{})
	for range 5 {
		if _, err := r.Read(t.Context(), "x", make([]byte, 0, 1000), 1000); err != nil {
			t.Fatal(err)
		}
	}
}

// TestConnectionsSurviveRefusals: requests for missing, denied and moved objects reuse one
// connection.
func TestConnectionsSurviveRefusals(t *testing.T) {
	var addresses atomic.Value
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if first := addresses.Swap(r.RemoteAddr); first != nil && first != r.RemoteAddr {
			t.Errorf("another connection for %s: %s after %s", r.URL.Path, r.RemoteAddr, first)
		}
		switch r.URL.Path {
		case "/moved":
			http.Redirect(w, r, "/there", http.StatusFound)
		case "/denied":
			http.Error(w, strings.Repeat("denied ", 300), http.StatusUnauthorized)
		case "/there":
			w.Write([]byte("data"))
		default:
			http.NotFound(w, r)
		}
	})
	r := newReader(t, url, bearing(t, token))
	for _, name := range []string{"absent", "denied", "moved", "absent", "there", "moved"} {
		_, _ = r.Read(t.Context(), name, nil, 10) // other tests check the error
		_, _ = r.Stat(t.Context(), name)
	}
}

func TestRequest(t *testing.T) {
	var got *http.Request
	url := serve(t, func(_ http.ResponseWriter, r *http.Request) { got = r })
	url = strings.Replace(url, "://", "://user:secret@", 1)
	r := newReader(t, url+"/a%2Fb/store/?sig=hush&x=%2F", web.Options{})
	if _, err := r.Read(t.Context(), "ab cd/x", nil, 10); err != nil {
		t.Fatal(err)
	}
	if want := "/a%2Fb/store/ab%20cd/x?sig=hush&x=%2F"; got.RequestURI != want {
		t.Errorf("asked for %s, want %s", got.RequestURI, want)
	}
	if user, password, _ := got.BasicAuth(); user != "user" || password != "secret" {
		t.Errorf("authenticated as %q %q", user, password)
	}
	if agent := got.UserAgent(); agent != "cairn" {
		t.Errorf("User-Agent is %q", agent)
	}
	if coding := got.Header.Get("Accept-Encoding"); coding != "identity" {
		t.Errorf("Accept-Encoding is %q", coding)
	}
}

func TestErrorsKeepSecrets(t *testing.T) {
	closed := httptest.NewServer(nil)
	closed.Close()
	handlers := map[string]http.HandlerFunc{
		"denied":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) },
		"redirect": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/?sig=hush", 302) },
		"cut":      func(w http.ResponseWriter, _ *http.Request) { hijack(w, "") },
	}
	urls := map[string]string{"closed": closed.URL}
	for name, handler := range handlers {
		urls[name] = serve(t, handler)
	}
	for name, url := range urls {
		r := newReader(t, strings.Replace(url, "://", "://user:hush@", 1)+"/s?sig=hush", web.Options{})
		_, err := r.Read(t.Context(), "x", nil, 10)
		if err == nil || strings.Contains(err.Error()+r.String(), "hush") {
			t.Errorf("%s: Read of %v = %v", name, r, err)
		}
	}
	_, err := web.Parse("http://user:hush@bad host/")
	if err == nil || strings.Contains(err.Error(), "hush") {
		t.Errorf("Parse = %v", err)
	}
}

func TestBadBase(t *testing.T) {
	for _, base := range []string{"", "/path", "ftp://host/", "http:///path", "http://%zz", "https:host/path"} {
		if _, err := web.Parse(base); err == nil {
			t.Errorf("Parse(%q) succeeded", base)
		}
	}
}

// TestRetryAfter: the error carries the wait that the server asks for, for store.Retry.
func TestRetryAfter(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "-7": 0, "soon": 0, "99999999999999999999": 0,
		time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat): 0,
		time.Now().Add(time.Hour).UTC().Format(http.TimeFormat):  time.Hour,
	} {
		url := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", value)
			w.WriteHeader(429)
		})
		_, err := newReader(t, url, web.Options{}).Read(t.Context(), "x", nil, 10)
		busy, ok := errors.AsType[*store.UnavailableError](err)
		if !ok || busy.After > want || busy.After < want-time.Minute {
			t.Errorf("Retry-After %q gave %v, want about %v", value, err, want)
		}
	}
}

// TestUnreliableServer: with Retry and Chunks, every chunk is read and correct although the server
// fails most requests, each in a different way.
func TestUnreliableServer(t *testing.T) {
	chunk := storetest.Bytes(1, 10_000)
	digest := blob.SHA256.Sum(chunk)
	var calls atomic.Int64
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, ".cacnk") {
			w.WriteHeader(404)
			return
		}
		unreliable(w, r, calls.Add(1), chunk)
	})
	r := store.Retry(newReader(t, url, impatient), store.Policy{First: time.Millisecond, Max: time.Millisecond})
	chunks := store.NewChunks(r, blob.SHA256)
	for range 10 {
		dst := make([]byte, len(chunk))
		if err := store.GetOne(t.Context(), chunks, digest, dst); err != nil || !bytes.Equal(dst, chunk) {
			t.Fatalf("Get = %v", err)
		}
	}
}

func unreliable(w http.ResponseWriter, r *http.Request, call int64, data []byte) {
	full := head("200 OK", fmt.Sprint("Content-Length: ", len(data)))
	switch call % 7 {
	case 0:
		w.Write(data)
	case 1:
		hijack(w, full+string(data[:5000]))
	case 2:
		w.WriteHeader(500)
	case 3:
		w.WriteHeader(503)
	case 4:
		hijack(w, "")
	case 5:
		w.Header().Set("Retry-After", "0")
		w.WriteHeader(429)
	case 6:
		<-r.Context().Done()
	}
}
