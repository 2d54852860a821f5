package s3_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"cairn/blob"
	"cairn/store"
	"cairn/store/storetest"
)

// TestLabelsDoNotCount: an object is read whatever its Content-Type and Content-Encoding are, since
// its writer chooses them.
func TestLabelsDoNotCount(t *testing.T) {
	page := append([]byte("<html>"), storetest.Bytes(1, 5000)...)
	d, dst := blob.SHA256.Sum(page), make([]byte, len(page))
	for _, header := range []http.Header{
		{"Content-Type": {"text/html"}}, {"Content-Encoding": {"aws-chunked"}}, {"Content-Encoding": {"gzip"}},
		{"Content-Encoding": {"identity"}}, {"Content-Type": {"text/html"}, "Content-Encoding": {"zstd"}},
	} {
		b := scripted(t, patient, func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, ".cacnk") {
				refuses(404, "NoSuchKey")(w, r)
				return
			}
			for name, values := range header {
				w.Header()[name] = values
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(page)))
			w.Write(page)
		})
		chunks := store.NewChunks(b, blob.SHA256)
		if err := store.GetOne(t.Context(), chunks, d, dst); err != nil || !bytes.Equal(dst, page) {
			t.Errorf("%v: Get = %v", header, err)
		}
		if size, err := chunks.Stat(t.Context(), d); size != int64(len(page)) || err != nil {
			t.Errorf("%v: Stat = %d, %v", header, size, err)
		}
	}
}

// TestHeaderExplains: a portal in front of the server is reported as unavailable by every call.
func TestHeaderExplains(t *testing.T) {
	b := scripted(t, patient, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		io.WriteString(w, "<html>log in")
	})
	d := blob.SHA256.Sum([]byte("data"))
	chunks := store.NewChunks(b, blob.SHA256)
	_, statErr := chunks.Stat(t.Context(), d)
	var listErr error
	for _, listErr = range b.List(t.Context(), "") {
	}
	for call, err := range map[string]error{
		"Get": store.GetOne(t.Context(), chunks, d, make([]byte, 4)), "Stat": statErr, "List": listErr,
		"Write": b.Write(t.Context(), "x", []byte("data")),
		"Stream": b.Stream(t.Context(), "x", 1000, func(in io.Reader) error {
			_, err := blob.Decode(in)
			return err
		}),
	} {
		checkClass(t, err, store.ErrUnavailable)
		if !strings.Contains(fmt.Sprint(err), "login form") {
			t.Errorf("%s = %v, want it to speak of a login form", call, err)
		}
	}
	if err := b.Remove(t.Context(), "x"); err == nil || errors.Is(err, store.ErrNotFound) {
		t.Errorf("Remove = %v", err)
	}
}
