package web_test

import (
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/internal/transfer"
	"cairn/store"
	"cairn/store/storetest"
	"cairn/store/web"
)

// part returns the header of a 206.
func part(contentRange string, fields ...string) string {
	return head("206 Partial Content", append(fields, "Content-Range: "+contentRange)...)
}

// TestRangeFaults: each case is an answer to the request for bytes 10 to 19, and the error for it. In
// these cases use is not called.
func TestRangeFaults(t *testing.T) {
	const ten = "Content-Length: 10"
	for name, test := range map[string]struct {
		answer string
		want   error
	}{
		"earlier":             {part("bytes 0-9/100", ten) + "0123456789", transfer.ErrPart},
		"later":               {part("bytes 11-19/100", "Content-Length: 9") + "123456789", transfer.ErrPart},
		"more":                {part("bytes 10-20/100", "Content-Length: 11") + "0123456789a", transfer.ErrPart},
		"fewer":               {part("bytes 10-18/100", "Content-Length: 9") + "012345678", transfer.ErrPart},
		"fewer, of any size":  {part("bytes 10-18/*", "Content-Length: 9") + "012345678", transfer.ErrPart},
		"shorter body":        {part("bytes 10-19/100", "Content-Length: 9") + "012345678", transfer.ErrPart},
		"longer body":         {part("bytes 10-19/100", "Content-Length: 11") + "0123456789a", transfer.ErrPart},
		"no Content-Range":    {head("206 Partial Content", ten) + "0123456789", transfer.ErrPart},
		"several parts":       {head("206 Partial Content", ten, "Content-Type: multipart/byteranges; boundary=x") + "0123456789", transfer.ErrPart},
		"other unit":          {part("lines 10-19/100", ten) + "0123456789", transfer.ErrPart},
		"no size":             {part("bytes 10-19", ten) + "0123456789", transfer.ErrPart},
		"after the end":       {part("bytes 10-19/19", ten) + "0123456789", transfer.ErrPart},
		"backwards":           {part("bytes 19-10/100", ten) + "0123456789", transfer.ErrPart},
		"sign":                {part("bytes +10-19/100", ten) + "0123456789", transfer.ErrPart},
		"huge":                {part("bytes 10-19/99999999999999999999", ten) + "0123456789", transfer.ErrPart},
		"unsatisfied in 206":  {part("bytes */100", ten) + "0123456789", transfer.ErrPart},
		"416":                 {head("416 Range Not Satisfiable", "Content-Range: bytes */5", "Content-Length: 0"), store.ErrRange},
		"404":                 {head("404 Not Found", "Content-Length: 0"), store.ErrNotFound},
		"403":                 {head("403 Forbidden", "Content-Length: 0"), store.ErrDenied},
		"503":                 {head("503 Busy", "Content-Length: 0"), store.ErrUnavailable},
		"no answer":           {"", store.ErrUnavailable},
		"page in place of it": {part("bytes 0-9/100", ten, "Content-Type: text/html") + "0123456789", store.ErrUnavailable},
	} {
		url := serve(t, func(w http.ResponseWriter, _ *http.Request) { hijack(w, test.answer) })
		err := newReader(t, url, web.Options{}).StreamRange(t.Context(), "x", 10, 10, func(store.Part, io.Reader) error {
			t.Errorf("%s: use was called", name)
			return nil
		})
		if !errors.Is(err, test.want) {
			t.Errorf("%s: StreamRange = %v, want %v", name, err, test.want)
			continue
		}
		class := test.want
		if errors.Is(class, transfer.ErrPart) || errors.Is(class, store.ErrRange) {
			class = nil
		}
		checkFault(t, nil, err, class)
	}
}

// TestRangeBodies: each case is an answer to the request for bytes 10 to 19 that use reads.
func TestRangeBodies(t *testing.T) {
	const whole = "abcdefghij0123456789klmno"
	const chunked = "Transfer-Encoding: chunked"
	for name, test := range map[string]struct {
		answer string
		part   store.Part
		body   string
		want   error
	}{
		"exact":             {part("bytes 10-19/25", "Content-Length: 10") + whole[10:20], store.Part{Offset: 10, Size: 25}, whole[10:20], nil},
		"unknown size":      {part("bytes 10-19/*", "Content-Length: 10") + whole[10:20], store.Part{Offset: 10, Size: -1}, whole[10:20], nil},
		"last part":         {part("Bytes 10-12/13", "Content-Length: 3") + whole[10:13], store.Part{Offset: 10, Size: 13}, whole[10:13], nil},
		"chunked":           {part("bytes 10-19/25", chunked) + "a\r\n0123456789\r\n0\r\n\r\n", store.Part{Offset: 10, Size: 25}, whole[10:20], nil},
		"chunked, longer":   {part("bytes 10-19/25", chunked) + "c\r\n0123456789kl\r\n0\r\n\r\n", store.Part{Offset: 10, Size: 25}, whole[10:20], nil},
		"chunked, shorter":  {part("bytes 10-19/25", chunked) + "5\r\n01234\r\n0\r\n\r\n", store.Part{Offset: 10, Size: 25}, "01234", store.ErrUnavailable},
		"chunked, cut":      {part("bytes 10-19/25", chunked) + "a\r\n01234", store.Part{Offset: 10, Size: 25}, "01234", store.ErrUnavailable},
		"cut":               {part("bytes 10-19/25", "Content-Length: 10") + "01234", store.Part{Offset: 10, Size: 25}, "01234", store.ErrUnavailable},
		"by the connection": {part("bytes 10-19/25", "Connection: close") + whole[10:20], store.Part{Offset: 10, Size: 25}, whole[10:20], nil},
		"shorter, by it":    {part("bytes 10-19/25", "Connection: close") + "01234", store.Part{Offset: 10, Size: 25}, "01234", store.ErrUnavailable},
		"whole":             {head("200 OK", "Content-Length: 25") + whole, store.Part{Size: 25, Whole: true}, whole, nil},
		"whole, chunked":    {head("200 OK", chunked) + "19\r\n" + whole + "\r\n0\r\n\r\n", store.Part{Size: -1, Whole: true}, whole, nil},
		"whole, cut":        {head("200 OK", "Content-Length: 25") + "abc", store.Part{Size: 25, Whole: true}, "abc", store.ErrUnavailable},
		"whole, empty":      {head("200 OK", "Content-Length: 0"), store.Part{Whole: true}, "", nil},
	} {
		url := serve(t, func(w http.ResponseWriter, _ *http.Request) { hijack(w, test.answer) })
		part, body, err := storetest.ReadRange(t.Context(), newReader(t, url, web.Options{}), "x", 10, 10)
		if part != test.part || string(body) != test.body || !errors.Is(err, test.want) {
			t.Errorf("%s: got %+v, %q, %v; want %+v, %q, %v", name, part, body, err, test.part, test.body, test.want)
		}
	}
}

// TestRangeRequest: a redirected request asks for the same range, and shows its credentials to the
// first origin only. After a permanent redirect the first server gets no more requests.
func TestRangeRequest(t *testing.T) {
	var got *http.Request
	target := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got = r
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader("abcdefghij0123456789"))
	})
	var first *http.Request
	asked := 0
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		first = r
		asked++
		http.Redirect(w, r, target+r.URL.Path, http.StatusMovedPermanently)
	})
	r := newReader(t, url, bearing(t, token))
	for range 2 {
		part, body, err := storetest.ReadRange(t.Context(), r, "a/x", 10, 5)
		if want := (store.Part{Offset: 10, Size: 20}); part != want || string(body) != "01234" || err != nil {
			t.Errorf("got %+v, %q, %v; want %+v", part, body, err, want)
		}
		for name, want := range map[string]string{"Range": "bytes=10-14", "Accept-Encoding": "identity", "Authorization": ""} {
			if got := got.Header.Get(name); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
	}
	if first.Header.Get("Range") != "bytes=10-14" || first.Header.Get("Authorization") == "" || asked != 1 {
		t.Errorf("the first server got %v, %d times", first.Header, asked)
	}
}

// TestNginxWithoutRanges: a server may be configured to ignore ranges.
func TestNginxWithoutRanges(t *testing.T) {
	dir := t.TempDir()
	data := storetest.Bytes(1, 1<<20)
	if err := os.WriteFile(filepath.Join(dir, "x"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	r := newReader(t, storetest.Nginx(t, dir, "max_ranges 0;"), web.Options{})
	part, got, err := storetest.ReadRange(t.Context(), r, "x", 1000, 1000)
	if want := (store.Part{Size: 1 << 20, Whole: true}); part != want || string(got) != string(data) || err != nil {
		t.Errorf("read %d bytes of %+v, %v; want the whole object, %+v", len(got), part, err, want)
	}
}
