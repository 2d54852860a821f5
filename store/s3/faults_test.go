package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cairn/internal/transfer"
	"cairn/store"
	"cairn/store/s3"
	"cairn/store/storetest"
)

var (
	once      = store.Policy{Patience: 1}
	patient   = s3.Options{Retry: once}
	impatient = s3.Options{Retry: once, Patience: 300 * time.Millisecond} // makes the tests of silence short
)

// scripted returns a bucket whose server answers with handler.
func scripted(t *testing.T, o s3.Options, handler http.HandlerFunc) *s3.Bucket {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return openBucket(t, "s3+"+server.URL+"/bucket/p", o)
}

// patience returns options with a short patience only for the cases that are named after a server's
// silence, since a busy machine may be slow in others.
func patience(name string) s3.Options {
	if strings.HasPrefix(name, "silent") {
		return impatient
	}
	return patient
}

// refuses answers with a status and S3's error code for it.
func refuses(status int, code string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		if code != "" {
			fmt.Fprintf(w, "<?xml version=\"1.0\"?>\n<Error><Code>%s</Code><Message>words</Message></Error>", code)
		}
	}
}

// raw answers with the given bytes and closes the connection.
func raw(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		io.WriteString(conn, text)
		conn.Close()
	}
}

func head(status string, fields ...string) string {
	return "HTTP/1.1 " + status + "\r\n" + strings.Join(fields, "\r\n") + "\r\n\r\n"
}

func silent(_ http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body) // so that the server notices when the client disconnects
	<-r.Context().Done()
}

const bomb = `<!DOCTYPE e [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>
<Error><Code>NoSuchKey</Code><Message>&c;&c;&c;</Message></Error>`

// TestFaults: each case is an answer and Read's error for it. A nil error in a case stands for an
// error that matches none of those that callers decide by.
func TestFaults(t *testing.T) {
	tests := map[string]struct {
		handler http.HandlerFunc
		want    error
	}{
		"no key":            {refuses(404, "NoSuchKey"), store.ErrNotFound},
		"no bucket":         {refuses(404, "NoSuchBucket"), s3.ErrNoBucket},
		"404 not of S3":     {refuses(404, ""), nil},
		"404 page":          {http.NotFound, nil},
		"410":               {refuses(410, ""), nil},
		"access denied":     {refuses(403, "AccessDenied"), store.ErrDenied},
		"403 without words": {refuses(403, ""), store.ErrDenied},
		"403 NoSuchKey":     {refuses(403, "NoSuchKey"), store.ErrDenied},
		"401":               {refuses(401, ""), store.ErrDenied},
		"expired":           {refuses(400, "ExpiredToken"), store.ErrDenied},
		"unknown key":       {refuses(403, "InvalidAccessKeyId"), store.ErrDenied},
		"wrong secret":      {refuses(403, "SignatureDoesNotMatch"), store.ErrDenied},
		"wrong clock":       {refuses(403, "RequestTimeTooSkewed"), store.ErrDenied},
		"slow down":         {refuses(503, "SlowDown"), store.ErrUnavailable},
		"503 without words": {refuses(503, ""), store.ErrUnavailable},
		"429":               {refuses(429, ""), store.ErrUnavailable},
		"internal":          {refuses(500, "InternalError"), store.ErrUnavailable},
		"timeout":           {refuses(400, "RequestTimeout"), store.ErrUnavailable},
		"501":               {refuses(501, "NotImplemented"), errors.ErrUnsupported},
		"400":               {refuses(400, "InvalidArgument"), nil},
		"204":               {refuses(204, ""), nil},
		"206":               {refuses(206, ""), nil},
		"416":               {refuses(416, "InvalidRange"), nil},
		"304":               {refuses(304, ""), nil},
		"web page": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			io.WriteString(w, "<html>")
		}, nil}, // see TestHeaderExplains
		"no answer":     {raw(""), store.ErrUnavailable},
		"no HTTP":       {raw("SSH-2.0-x\r\n\r\n"), store.ErrUnavailable},
		"truncated":     {raw(head("200 OK", "Content-Length: 10") + "12345"), store.ErrUnavailable},
		"cut chunks":    {raw(head("200 OK", "Transfer-Encoding: chunked") + "5\r\n12345\r\n"), store.ErrUnavailable},
		"without end":   {raw(head("200 OK", "Connection: close") + "0123456789"), nil},
		"too long":      {raw(head("200 OK", "Content-Length: 1000000000000") + "1"), store.ErrTooLarge},
		"long chunked":  {raw(head("200 OK", "Transfer-Encoding: chunked") + "ff\r\n" + strings.Repeat("1", 255)), store.ErrTooLarge},
		"bad length":    {raw(head("200 OK", "Content-Length: -1") + "1"), store.ErrUnavailable},
		"endless head":  {raw("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20)), store.ErrUnavailable},
		"bomb":          {raw(head("404 Not Found", fmt.Sprint("Content-Length: ", len(bomb))) + bomb), nil},
		"garbage":       {raw(head("403 Forbidden", "Content-Length: 9") + "\x00\xff<Error>"), store.ErrDenied},
		"short refusal": {raw(head("503 Busy", "Content-Length: 90") + "<Error>"), store.ErrUnavailable},
		"deep":          {raw(head("404 Not Found", "Content-Length: 60000") + strings.Repeat("<a>", 20000)), nil},
		"endless refusal": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(403)
			for r.Context().Err() == nil {
				w.Write(make([]byte, 32<<10))
			}
		}, store.ErrDenied},
		"silent":         {silent, store.ErrUnavailable},
		"silent refusal": {stall("403 Forbidden"), store.ErrDenied},
		"silent body":    {stall("200 OK"), store.ErrUnavailable},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := scripted(t, patience(name), test.handler).Read(t.Context(), "x", nil, 100)
			if err == nil {
				t.Fatalf("Read = %q, want an error", got)
			}
			checkClass(t, err, test.want)
		})
	}
}

// stall begins an answer and sends no more.
func stall(status string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		io.WriteString(conn, head(status, "Content-Length: 10")+"12345")
		io.Copy(io.Discard, conn) // until the client closes the connection
	}
}

func checkClass(t *testing.T, err, want error) {
	t.Helper()
	for _, class := range []error{store.ErrNotFound, store.ErrDenied, store.ErrUnavailable, store.ErrTooLarge, store.ErrExists,
		s3.ErrNoBucket, errors.ErrUnsupported} {
		if errors.Is(err, class) != (class == want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
}

// TestStatFaults: answers to HEAD have no body, and so no error code.
func TestStatFaults(t *testing.T) {
	for status, want := range map[int]error{
		403: store.ErrDenied, 401: store.ErrDenied, 400: nil, 500: store.ErrUnavailable, 503: store.ErrUnavailable, 404: s3.ErrNoBucket,
	} {
		_, err := scripted(t, patient, refuses(status, "")).Stat(t.Context(), "x")
		checkClass(t, err, want)
	}
	b := scripted(t, patient, func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/p/") {
			w.WriteHeader(404)
		}
	})
	_, err := b.Stat(t.Context(), "x")
	checkClass(t, err, store.ErrNotFound)
	_, err = scripted(t, patient, raw(head("200 OK", "Transfer-Encoding: chunked"))).Stat(t.Context(), "x")
	checkClass(t, err, nil)
}

// TestETagsMeanNothing: an ETag may or may not be the object's MD5, so only the length is checked.
func TestETagsMeanNothing(t *testing.T) {
	b := scripted(t, patient, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"00000000000000000000000000000000"`)
		io.WriteString(w, "data")
	})
	if got, err := b.Read(t.Context(), "x", nil, 10); string(got) != "data" || err != nil {
		t.Errorf("Read = %q, %v", got, err)
	}
}

// TestRetryAfter: the error carries the wait that the server asks for, for store.Retry.
func TestRetryAfter(t *testing.T) {
	b := scripted(t, patient, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "7")
		refuses(503, "SlowDown")(w, r)
	})
	_, err := b.Read(t.Context(), "x", nil, 10)
	if busy, ok := errors.AsType[*store.UnavailableError](err); !ok || busy.After != 7*time.Second {
		t.Errorf("Read = %v, want to be asked to wait for 7 s", err)
	}
}

// TestThrottled: the error reports whether the server is overloaded, which a store's link needs to
// know.
func TestThrottled(t *testing.T) {
	for _, test := range []struct {
		status int
		code   string
		want   bool
	}{
		{503, "SlowDown", true}, {503, "", true}, {429, "", true}, {400, "Throttling", true}, {503, "ServiceUnavailable", true},
		{500, "InternalError", false}, {400, "RequestTimeout", false}, {502, "", false},
	} {
		_, err := scripted(t, patient, refuses(test.status, test.code)).Stat(t.Context(), "x")
		_, readErr := scripted(t, patient, refuses(test.status, test.code)).Read(t.Context(), "x", nil, 10)
		busy, ok := errors.AsType[*store.UnavailableError](readErr)
		if !ok || busy.Throttled != test.want {
			t.Errorf("%d %s: Read = %#v, want throttled: %v", test.status, test.code, readErr, test.want)
		}
		if busy, ok := errors.AsType[*store.UnavailableError](err); test.status > 400 && (!ok || busy.Throttled != test.want) {
			t.Errorf("%d %s: Stat = %#v, want throttled: %v", test.status, test.code, err, test.want)
		}
	}
}

// TestRequests: each call sends exactly the expected requests.
func TestRequests(t *testing.T) {
	var asked []string
	b := scripted(t, patient, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.RequestURI)
		w.Header().Set("ETag", `"x"`)
		switch {
		case r.Method == "HEAD" && strings.HasSuffix(r.URL.Path, "absent"):
			w.WriteHeader(404)
		case r.Method == "HEAD":
			w.Header().Set("Content-Length", "4")
		case r.URL.RawQuery != "":
			io.WriteString(w, "<ListBucketResult></ListBucketResult>")
		}
	})
	check := func(want ...string) {
		t.Helper()
		if got := strings.Join(asked, ", "); got != strings.Join(want, ", ") {
			t.Errorf("asked for %s, want %s", got, want)
		}
		asked = nil
	}
	b.Stat(t.Context(), "absent")
	check("HEAD /bucket/p/absent", "HEAD /bucket")
	b.Stat(t.Context(), "absent")
	check("HEAD /bucket/p/absent")
	b.Read(t.Context(), "a b+c", nil, 10)
	check("GET /bucket/p/a%20b%2Bc")
	b.Write(t.Context(), "x", []byte("data"))
	check("PUT /bucket/p/x")
	b.Create(t.Context(), "absent", []byte("data"))
	check("HEAD /bucket/p/absent", "PUT /bucket/p/absent")
	b.Create(t.Context(), "x", []byte("data"))
	check("HEAD /bucket/p/x")
	for range b.List(t.Context(), "ab c") {
	}
	check("GET /bucket?encoding-type=url&list-type=2&max-keys=1000&prefix=p%2Fab%20c")
}

// TestRange: a range is one request. S3's own answers, those of a server without ranges, and wrong
// ones are told apart.
func TestRange(t *testing.T) {
	const ten = "Content-Length: 10"
	partial := func(field string) http.HandlerFunc {
		return raw(head("206 Partial Content", ten, "Content-Range: "+field) + "0123456789")
	}
	for name, test := range map[string]struct {
		handler http.HandlerFunc
		part    store.Part
		body    string
		want    error
	}{
		"part":      {partial("bytes 10-19/100"), store.Part{Offset: 10, Size: 100}, "0123456789", nil},
		"whole":     {raw(head("200 OK", ten) + "0123456789"), store.Part{Size: 10, Whole: true}, "0123456789", nil},
		"other":     {partial("bytes 0-9/100"), store.Part{}, "", transfer.ErrPart},
		"no field":  {raw(head("206 Partial Content", ten) + "0123456789"), store.Part{}, "", transfer.ErrPart},
		"after end": {refuses(416, "InvalidRange"), store.Part{}, "", store.ErrRange},
		"absent":    {refuses(404, "NoSuchKey"), store.Part{}, "", store.ErrNotFound},
		"denied":    {refuses(403, "AccessDenied"), store.Part{}, "", store.ErrDenied},
		"busy":      {refuses(503, "SlowDown"), store.Part{}, "", store.ErrUnavailable},
		"cut": {raw(head("206 Partial Content", ten, "Content-Range: bytes 10-19/100") + "012"),
			store.Part{Offset: 10, Size: 100}, "012", store.ErrUnavailable},
	} {
		var asked []string
		b := scripted(t, patient, func(w http.ResponseWriter, r *http.Request) {
			asked = append(asked, r.Method+" "+r.RequestURI+" "+r.Header.Get("Range"))
			test.handler(w, r)
		})
		part, body, err := storetest.ReadRange(t.Context(), b, "x", 10, 10)
		if part != test.part || string(body) != test.body || !errors.Is(err, test.want) {
			t.Errorf("%s: got %+v, %q, %v; want %+v, %q, %v", name, part, body, err, test.part, test.body, test.want)
		}
		if got := strings.Join(asked, ", "); got != "GET /bucket/p/x bytes=10-19" {
			t.Errorf("%s: asked for %s", name, got)
		}
	}
}

// TestPut: a PUT has a length and checksums for the server to verify.
func TestPut(t *testing.T) {
	b := scripted(t, patient, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if string(body) != "data" || r.ContentLength != 4 || r.Header.Get("Content-Md5") != "jXd/OF09/siBXSD3SWAm3A==" ||
			r.Header.Get("X-Amz-Content-Sha256") != "3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7" {
			t.Errorf("got %q with %v", body, r.Header)
		}
		w.Header().Set("ETag", `"x"`)
	})
	if err := b.Write(t.Context(), "x", []byte("data")); err != nil {
		t.Error(err)
	}
}

// TestPutFaults: an object counts as stored only if S3's answer confirms it.
func TestPutFaults(t *testing.T) {
	for name, test := range map[string]struct {
		handler http.HandlerFunc
		want    error
	}{
		"portal":    {func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>log in") }, store.ErrUnavailable},
		"no ETag":   {func(w http.ResponseWriter, _ *http.Request) {}, nil},
		"denied":    {refuses(403, "AccessDenied"), store.ErrDenied},
		"no bucket": {refuses(404, "NoSuchBucket"), s3.ErrNoBucket},
		"bad sum":   {refuses(400, "BadDigest"), nil},
		"busy":      {refuses(409, "OperationAborted"), store.ErrUnavailable},
		"cut":       {raw(""), store.ErrUnavailable},
		"redirect":  {http.RedirectHandler("http://example.com/", 307).ServeHTTP, nil},
		"silent":    {silent, store.ErrUnavailable},
	} {
		err := scripted(t, patience(name), test.handler).Write(t.Context(), "x", []byte("data"))
		if err == nil {
			t.Errorf("%s: Write succeeded", name)
			continue
		}
		checkClass(t, err, test.want)
	}
}

// TestServerThatNeverReads: an upload to a server that reads nothing fails.
func TestServerThatNeverReads(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close() // also closes connections that were never accepted
	b := openBucket(t, "s3+http://"+listener.Addr().String()+"/bucket", impatient)
	err = b.Write(t.Context(), "x", make([]byte, 64<<20))
	checkClass(t, err, store.ErrUnavailable)
	if !strings.Contains(fmt.Sprint(err), "stalled") {
		t.Errorf("Write = %v, want a stalled transfer", err)
	}
}

// TestWriteKeepsNoData: nothing reads the data after Write returns, even if the server answers
// before it has received all of it. The race detector reports a later read.
func TestWriteKeepsNoData(t *testing.T) {
	b := scripted(t, patient, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		refuses(403, "AccessDenied")(w, r)
	})
	data := make([]byte, 32<<20)
	for range 5 {
		err := b.Write(t.Context(), "x", data)
		if !errors.Is(err, store.ErrDenied) && !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("Write = %v", err)
		}
		clear(data)
	}
}

// TestCreateFaults: a name counts as taken when the server reports that, but not during concurrent
// writes.
func TestCreateFaults(t *testing.T) {
	for name, test := range map[string]struct {
		answers []http.HandlerFunc // to the PUTs; the last one stays
		want    error
	}{
		"taken":           {[]http.HandlerFunc{refuses(412, "PreconditionFailed")}, store.ErrExists},
		"conflict, taken": {[]http.HandlerFunc{refuses(409, "ConditionalRequestConflict"), refuses(412, "PreconditionFailed")}, store.ErrExists},
		"conflict, free":  {[]http.HandlerFunc{refuses(409, "ConditionalRequestConflict"), stored}, nil},
		"conflicts":       {[]http.HandlerFunc{refuses(409, "ConditionalRequestConflict")}, store.ErrUnavailable},
		"not known":       {[]http.HandlerFunc{refuses(501, "NotImplemented")}, errors.ErrUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var puts atomic.Int64
			b := scripted(t, patient, func(w http.ResponseWriter, r *http.Request) {
				if r.Method == "HEAD" {
					w.WriteHeader(404)
					return
				}
				if r.Header.Get("If-None-Match") != "*" {
					t.Error("the PUT has no condition")
				}
				n := int(puts.Add(1)) - 1
				test.answers[min(n, len(test.answers)-1)](w, r)
			})
			err := b.Create(t.Context(), "x", []byte("data"))
			checkClass(t, err, test.want)
			if n := puts.Load(); test.want == nil && err != nil || n > 6 {
				t.Errorf("Create = %v after %d PUTs", err, n)
			}
		})
	}
}

// TestCreateChecksFirst: Create writes nothing if the check before it fails, since the server may
// ignore If-None-Match.
func TestCreateChecksFirst(t *testing.T) {
	for code, want := range map[int]error{500: store.ErrUnavailable, 503: store.ErrUnavailable, 400: nil} {
		b := scripted(t, patient, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == "HEAD" {
				w.WriteHeader(code)
				return
			}
			t.Errorf("%d: sent nevertheless", code)
			stored(w, r)
		})
		err := b.Create(t.Context(), "x", []byte("data"))
		if err == nil {
			t.Errorf("%d: Create succeeded", code)
		}
		checkClass(t, err, want)
	}
	b := scripted(t, patient, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "HEAD" {
			w.WriteHeader(403) // a writer need not have the right to read
			return
		}
		stored(w, r)
	})
	if err := b.Create(t.Context(), "x", []byte("data")); err != nil {
		t.Errorf("Create where reading is denied = %v", err)
	}
}

func stored(w http.ResponseWriter, _ *http.Request) { w.Header().Set("ETag", `"x"`) }

func TestCancelled(t *testing.T) {
	calls := map[string]func(context.Context, *s3.Bucket) error{
		"Read": func(ctx context.Context, b *s3.Bucket) error {
			_, err := b.Read(ctx, "x", nil, 10)
			return err
		},
		"Stat": func(ctx context.Context, b *s3.Bucket) error {
			_, err := b.Stat(ctx, "x")
			return err
		},
		"Write":  func(ctx context.Context, b *s3.Bucket) error { return b.Write(ctx, "x", make([]byte, 1<<20)) },
		"Create": func(ctx context.Context, b *s3.Bucket) error { return b.Create(ctx, "x", nil) },
		"List": func(ctx context.Context, b *s3.Bucket) (last error) {
			for _, last = range b.List(ctx, "") {
			}
			return last
		},
	}
	for name, call := range calls {
		asked := make(chan struct{}, 1)
		b := scripted(t, patient, func(_ http.ResponseWriter, r *http.Request) {
			asked <- struct{}{}
			silent(nil, r)
		})
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-asked
			cancel()
		}()
		if err := call(ctx, b); !errors.Is(err, context.Canceled) || errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s while cancelling = %v, want context.Canceled", name, err)
		}
	}
}

// TestRedirects: redirects are not followed, so the keys reach no other server.
func TestRedirects(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "id")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "hush")
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the other server was asked") }))
	defer other.Close()
	for _, status := range []int{301, 302, 303, 307, 308} {
		b := scripted(t, patient, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other.URL+r.URL.Path, status) })
		_, err := b.Read(t.Context(), "x", nil, 10)
		checkClass(t, err, nil)
		if err == nil || !strings.Contains(err.Error(), "not followed") {
			t.Errorf("Read = %v, want a redirect that is not followed", err)
		}
		if err := b.Write(t.Context(), "x", []byte("data")); err == nil {
			t.Error("Write through a redirect succeeded")
		}
	}
}

// TestRegion: a request is signed for the region that the server names, and sent to the same
// server, unless the location sets a region.
func TestRegion(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "id")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "hush")
	answers := map[string]http.HandlerFunc{
		"header": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Amz-Bucket-Region", "eu-west-9")
			w.Header().Set("Location", "http://evil.example.com/")
			refuses(301, "PermanentRedirect")(w, r)
		},
		"body": func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(400)
			io.WriteString(w, "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-9</Region></Error>")
		},
		"evil": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Amz-Bucket-Region", "evil.example.com/")
			w.WriteHeader(400)
		},
	}
	for name, answer := range answers {
		var asked atomic.Int64
		handler := func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			if !strings.Contains(r.Header.Get("Authorization"), "/eu-west-9/s3/") {
				answer(w, r)
				return
			}
			io.WriteString(w, "data")
		}
		server := httptest.NewServer(http.HandlerFunc(handler))
		b := openBucket(t, "s3+"+server.URL+"/bucket", patient)
		for range 2 {
			got, err := b.Read(t.Context(), "x", nil, 10)
			if (string(got) == "data") != (name != "evil") {
				t.Errorf("%s: Read = %q, %v", name, got, err)
			}
		}
		if n := asked.Load(); name != "evil" && n != 3 {
			t.Errorf("%s: %d requests for two reads, want 3", name, n)
		}
		b = openBucket(t, "s3+"+server.URL+"/bucket?region=us-east-1", patient)
		if got, err := b.Read(t.Context(), "x", nil, 10); err == nil {
			t.Errorf("%s: Read in another region than the location's = %q", name, got)
		}
		server.Close()
	}
}

// listing returns a page of names with the token of the next one.
func listing(next string, names ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><IsTruncated>%t</IsTruncated>", next != "")
	fmt.Fprintf(&b, "<EncodingType>url</EncodingType><NextContinuationToken>%s</NextContinuationToken>", next)
	for _, name := range names {
		fmt.Fprintf(&b, "<Contents><Key>%s</Key><Size>1</Size></Contents>", name)
	}
	return b.String() + "</ListBucketResult>"
}

func TestListPages(t *testing.T) {
	b := scripted(t, patient, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Query().Get("continuation-token") {
		case "":
			io.WriteString(w, listing("a/+=", "p/a+b", "p/dir/"))
		case "a/+=":
			io.WriteString(w, listing("3"))
		case "3":
			io.WriteString(w, listing("", "p/c%2Bd%25", "p//odd"))
		}
	})
	var names []string
	for o, err := range b.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, o.Name)
	}
	if got := strings.Join(names, "|"); got != "a b|c+d%" {
		t.Errorf("List = %s", got)
	}
}

// TestListFaults: an invalid page ends the listing with an error.
func TestListFaults(t *testing.T) {
	text := func(s string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, s) }
	}
	for name, test := range map[string]struct {
		second http.HandlerFunc
		want   error
	}{
		"denied":      {refuses(403, "AccessDenied"), store.ErrDenied},
		"no bucket":   {refuses(404, "NoSuchBucket"), s3.ErrNoBucket},
		"busy":        {refuses(503, "SlowDown"), store.ErrUnavailable},
		"cut":         {raw(head("200 OK", "Content-Length: 100") + "<ListBucketResult>"), store.ErrUnavailable},
		"not XML":     {text("data"), nil},
		"half":        {text("<ListBucketResult><Contents>"), nil},
		"other XML":   {text("<Error><Code>NoSuchKey</Code></Error>"), nil},
		"same token":  {text(listing("2", "p/x")), nil},
		"no token":    {text("<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>"), nil},
		"other names": {text(listing("", "q/x")), nil},
		"bad coding":  {text(listing("", "p/%zz")), nil},
		"bad size":    {text("<ListBucketResult><Contents><Key>p/x</Key><Size>-1</Size></Contents></ListBucketResult>"), nil},
		"too large":   {raw(head("200 OK", "Content-Length: 1000000000") + "<"), store.ErrTooLarge},
		"bomb":        {text(strings.NewReplacer("Error", "ListBucketResult", "Code", "Contents").Replace(bomb)), nil},
		"portal":      {text("<html>"), store.ErrUnavailable},
		"silent":      {silent, store.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := scripted(t, patience(name), func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Query().Get("continuation-token") == "" {
					io.WriteString(w, listing("2", "p/first"))
					return
				}
				test.second(w, r)
			})
			var last error
			n := 0
			for _, last = range b.List(t.Context(), "") {
				n++
			}
			if last == nil || n < 2 {
				t.Fatalf("List ends with %v after %d, want an error", last, n)
			}
			checkClass(t, last, test.want)
		})
	}
}

// TestListRetries: a failed page is requested again, and the listing continues there.
func TestListRetries(t *testing.T) {
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch n := asked.Add(1); {
		case n%3 != 0:
			refuses(503, "SlowDown")(w, r)
		case r.URL.Query().Get("continuation-token") == "":
			io.WriteString(w, listing("2", "a"))
		default:
			io.WriteString(w, listing("", "b"))
		}
	}))
	defer server.Close()
	b := openBucket(t, "s3+"+server.URL+"/bucket", s3.Options{Retry: store.Policy{First: time.Millisecond}})
	names := ""
	for o, err := range b.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		names += o.Name
	}
	if names != "ab" {
		t.Errorf("List = %q, want each name once", names)
	}
}

// TestErrorsKeepSecrets: errors contain no secrets, and no control characters from the server.
func TestErrorsKeepSecrets(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "id")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "hush")
	t.Setenv("AWS_SESSION_TOKEN", "hush")
	b := scripted(t, patient, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(403)
		fmt.Fprintf(w, "<Error><Code>SignatureDoesNotMatch</Code><Message>a\n\u009b31m%s</Message><StringToSign>%s</StringToSign></Error>",
			strings.Repeat("long ", 1000), r.Header.Get("X-Amz-Security-Token"))
	})
	_, err := b.Read(t.Context(), "x", nil, 10)
	text := fmt.Sprint(err, b)
	if !errors.Is(err, store.ErrDenied) || strings.Contains(text, "hush") || strings.ContainsAny(text, "\n\u009b") || len(text) > 1000 {
		t.Errorf("Read of %v = %v", b, err)
	}
}

// TestUnreliableServer: with RetryBucket, every object is written and read although the server
// fails most requests, each in a different way.
func TestUnreliableServer(t *testing.T) {
	var asked atomic.Int64
	var object []byte
	b := store.RetryBucket(scripted(t, impatient, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		answers := []http.HandlerFunc{refuses(503, "SlowDown"), raw(""), refuses(500, "InternalError"), silent, nil}
		if answer := answers[asked.Add(1)%5]; answer != nil {
			answer(w, r)
			return
		}
		if stored(w, r); r.Method == "PUT" {
			object = body
			return
		}
		w.Write(object)
	}), store.Policy{First: time.Millisecond, Max: time.Millisecond})
	for i := range 3 {
		want := storetest.Bytes(uint64(i), 100_000)
		if err := b.Write(t.Context(), "x", want); err != nil {
			t.Fatal(err)
		}
		if got, err := b.Read(t.Context(), "x", nil, 1<<20); err != nil || !bytes.Equal(got, want) {
			t.Errorf("Read = %d bytes, %v", len(got), err)
		}
	}
}

// TestCheckCreate: CheckCreate recognises a server without If-None-Match, and writes no object.
func TestCheckCreate(t *testing.T) {
	for name, test := range map[string]struct {
		handler http.HandlerFunc
		want    error
	}{
		"does not know it": {refuses(501, "NotImplemented"), errors.ErrUnsupported},
		"wrong sum":        {refuses(400, "BadDigest"), nil},
		"exists":           {refuses(412, "PreconditionFailed"), nil},
		"denied":           {refuses(403, "AccessDenied"), nil},
		"away":             {refuses(503, "SlowDown"), store.ErrUnavailable},
	} {
		var asked []*http.Request
		b := scripted(t, patient, func(w http.ResponseWriter, r *http.Request) {
			asked = append(asked, r)
			test.handler(w, r)
		})
		err := b.CheckCreate(t.Context())
		if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
			t.Errorf("%s: CheckCreate = %v, want %v", name, err, test.want)
		}
		if len(asked) != 1 || asked[0].Header.Get("If-None-Match") != "*" {
			t.Errorf("%s: %d requests", name, len(asked))
		}
	}
	var methods []string
	b := scripted(t, patient, func(_ http.ResponseWriter, r *http.Request) { methods = append(methods, r.Method+" "+r.URL.Path) })
	if err := b.CheckCreate(t.Context()); err != nil || strings.Join(methods, ", ") != "PUT /bucket/p/.cairn-probe, DELETE /bucket/p/.cairn-probe" {
		t.Errorf("where anything is taken: %v, %v", err, methods)
	}
}
