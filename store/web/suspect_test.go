package web_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/blob"
	"cairn/store"
	"cairn/store/storetest"
	"cairn/store/web"
)

// page is a chunk that looks like a web page to servers.
var page = append([]byte("<!DOCTYPE html><html><title>a chunk</title>"), storetest.Bytes(1, 5000)...)

// sniffing starts a server that accepts PUT, and guesses types from the first bytes, as Go's file
// server, Caddy and rclone do.
func sniffing(t *testing.T) string {
	dir := t.TempDir()
	files := http.FileServer(http.Dir(dir))
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPut {
			files.ServeHTTP(w, r)
			return
		}
		body, err := io.ReadAll(r.Body)
		path := filepath.Join(dir, filepath.FromSlash(r.URL.Path))
		if err := errors.Join(err, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, body, 0o600)); err != nil {
			t.Error(err)
		}
	})
}

// TestReadsBackPlainChunks: a chunk that is written without compression can be read, and is not
// sent twice, whatever type the server guesses.
func TestReadsBackPlainChunks(t *testing.T) {
	b, d := newBucket(t, sniffing(t), web.Options{}), blob.SHA256.Sum(page)
	w, err := store.NewWriter(b, store.WriterOptions{Compression: store.None})
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Put(t.Context(), d, page)
	if err := errors.Join(err, w.Commit(t.Context()), w.Close()); err != nil {
		t.Fatal(err)
	}
	if has, err := w.Has(t.Context(), d); !has || err != nil {
		t.Errorf("Has = %v, %v", has, err)
	}
	checkChunk(t, "a plain chunk like a web page", b, d, page)
}

// checkChunk reads a chunk with Get of one want, with Get of several, and with Stat.
func checkChunk(t *testing.T, name string, r store.Reader, d blob.Digest, want []byte) {
	t.Helper()
	chunks := store.NewChunks(r, blob.SHA256)
	dst := make([]byte, len(want))
	if err := store.GetOne(t.Context(), chunks, d, dst); err != nil || !bytes.Equal(dst, want) {
		t.Errorf("%s: Get = %v", name, err)
	}
	clear(dst)
	err := store.GetAll(t.Context(), chunks, []store.Want{{Digest: d, Dst: dst}, {Digest: d, Dst: make([]byte, len(dst))}}, nil)
	if err != nil || !bytes.Equal(dst, want) {
		t.Errorf("%s: GetAll = %v", name, err)
	}
	if size, err := chunks.Stat(t.Context(), d); size == 0 || err != nil {
		t.Errorf("%s: Stat = %d, %v", name, size, err)
	}
}

// served starts a server with one object, which it sends with the given header.
func served(t *testing.T, name string, body []byte, header http.Header) *web.Bucket {
	return newReader(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/"+name {
			http.NotFound(w, r)
			return
		}
		for field, values := range header {
			w.Header()[field] = values
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		w.Write(body)
	}), web.Options{})
}

// TestLabelsDoNotCount: a header that contradicts the bytes is ignored if the digest is right.
func TestLabelsDoNotCount(t *testing.T) {
	d := blob.SHA256.Sum(page)
	packed := packedChunk(t, page, d)
	for _, coding := range []string{"identity", "Identity", "", "aws-chunked", "zstd", "x-zstd", "gzip", "identity, br"} {
		for form, body := range map[bool][]byte{false: page, true: packed} {
			name := fmt.Sprintf("Content-Encoding %q, packed %v", coding, form)
			header := http.Header{"Content-Encoding": {coding}, "Content-Type": {"application/octet-stream"}}
			checkChunk(t, name, served(t, store.ObjectName(d, form), body, header), d, page)
		}
	}
	for form, body := range map[bool][]byte{false: page, true: packed} {
		header := http.Header{"Content-Type": {"text/html"}, "Content-Encoding": {"gzip"}}
		checkChunk(t, "text/html", served(t, store.ObjectName(d, form), body, header), d, page)
	}
}

func packedChunk(t *testing.T, data []byte, d blob.Digest) []byte {
	t.Helper()
	dir := newBucket(t, sniffing(t), web.Options{})
	w, err := store.NewWriter(dir, store.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Put(t.Context(), d, data)
	packed, readErr := dir.Read(t.Context(), store.ObjectName(d, true), nil, 1<<20)
	if err := errors.Join(err, w.Close(), readErr); err != nil {
		t.Fatal(err)
	}
	return packed
}

// TestWithoutEnd: a body that ends with its connection is accepted if its digest is right.
func TestWithoutEnd(t *testing.T) {
	d := blob.SHA256.Sum(page)
	r := newReader(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, store.ObjectName(d, false)) {
			http.NotFound(w, r)
			return
		}
		hijack(w, "HTTP/1.0 200 OK\r\n\r\n"+string(page))
	}), web.Options{})
	checkChunk(t, "HTTP/1.0", r, d, page)
}

// TestHeaderExplains: if the bytes are wrong, the error is the one that the header indicates. This
// is also true of a body that is larger than the chunk.
func TestHeaderExplains(t *testing.T) {
	for _, size := range []int{10, len(page), 1 << 20} {
		body := append([]byte("<html>"), make([]byte, size)...)
		for name, test := range map[string]struct {
			header http.Header
			want   error
			words  string
		}{
			"login form": {http.Header{"Content-Type": {"text/html"}}, store.ErrUnavailable, "login form"},
			"recoded":    {http.Header{"Content-Encoding": {"br"}}, nil, `Content-Encoding "br"`},
		} {
			r := newReader(t, serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/octet-stream")
				for field := range test.header {
					w.Header().Set(field, test.header.Get(field))
				}
				w.Header().Set("Content-Length", fmt.Sprint(len(body)))
				w.Write(body)
			}), web.Options{})
			d, dst := blob.SHA256.Sum(page), make([]byte, len(page))
			chunks := store.NewChunks(r, blob.SHA256)
			_, statErr := chunks.Stat(t.Context(), d)
			streamErr := r.Stream(t.Context(), "x", 1<<30, func(in io.Reader) error {
				_, err := blob.Decode(in)
				return err
			})
			for _, err := range []error{
				store.GetOne(t.Context(), chunks, d, dst),
				store.GetAll(t.Context(), chunks, []store.Want{{Digest: d, Dst: dst}, {Digest: d, Dst: make([]byte, len(dst))}}, nil),
				chunks.Load(t.Context(), d, true, int64(len(page)), new(store.Raw)), streamErr,
			} {
				checkFault(t, nil, err, test.want)
				if !strings.Contains(fmt.Sprint(err), test.words) {
					t.Errorf("%s of %d bytes: %v, want %q in it", name, size, err, test.words)
				}
			}
			if test.want != nil {
				checkFault(t, nil, statErr, test.want)
			}
		}
	}
}

// TestWrittenToPages: servers answer PUT with a page too. 201 and 204 prove that the object is
// stored; 200 with a page does so only if the object can be read back.
func TestWrittenToPages(t *testing.T) {
	for name, test := range map[string]struct {
		status int
		keeps  bool
		want   error
	}{
		"Apache": {http.StatusCreated, true, nil},
		"said":   {http.StatusOK, true, nil},
		"portal": {http.StatusOK, false, store.ErrUnavailable},
	} {
		var kept []byte
		url := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			if r.Method == http.MethodGet {
				w.Write(kept)
				return
			}
			if body, _ := io.ReadAll(r.Body); test.keeps {
				kept = body
			}
			w.WriteHeader(test.status)
			io.WriteString(w, "<html>")
		})
		if err := newBucket(t, url, web.Options{}).Write(t.Context(), "x", page); !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
			t.Errorf("%s: Write = %v, want %v", name, err, test.want)
		}
	}
}

// TestStreamStops: Stream reads only the beginning of a body that is not an index.
func TestStreamStops(t *testing.T) {
	sent := make(chan int, 1)
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(600<<20))
		n := 0
		for zeros := make([]byte, 1<<20); n < 600<<20 && r.Context().Err() == nil; {
			m, err := w.Write(zeros)
			if n += m; err != nil {
				break
			}
		}
		sent <- n
	})
	err := newReader(t, url, web.Options{}).Stream(t.Context(), "v.caibx", 1<<40, func(in io.Reader) error {
		_, err := blob.Decode(in)
		return err
	})
	if !errors.Is(err, blob.ErrInvalid) {
		t.Errorf("Stream = %v, want ErrInvalid", err)
	}
	if n := <-sent; n > 100<<20 {
		t.Errorf("%d bytes of zeros were taken", n)
	}
}

// TestRefusedHead: if the server refuses HEAD, Stat sends GET.
func TestRefusedHead(t *testing.T) {
	for _, status := range []int{http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotImplemented} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.Method == http.MethodHead:
				w.WriteHeader(status)
			case r.URL.Path == "/there":
				w.Write(make([]byte, 1000))
			default:
				http.NotFound(w, r)
			}
		}))
		t.Cleanup(s.Close)
		r := newReader(t, s.URL, web.Options{})
		if size, err := r.Stat(t.Context(), "there"); size != 1000 || err != nil {
			t.Errorf("%d: Stat = %d, %v", status, size, err)
		}
		if _, err := r.Stat(t.Context(), "absent"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%d: Stat of an absent object = %v", status, err)
		}
	}
}

// TestLargeHeader: a header larger than 64 KiB is refused, whatever follows it.
func TestLargeHeader(t *testing.T) {
	for size, fits := range map[int]bool{60 << 10: true, 70 << 10: false} {
		url := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			for range size / 100 {
				w.Header().Add("X", strings.Repeat("x", 96)) // with ": " and the end of the line
			}
			io.WriteString(w, "data")
		})
		got, err := newReader(t, url, web.Options{}).Read(t.Context(), "x", nil, 10)
		if fits && (err != nil || string(got) != "data") || !fits && err == nil {
			t.Errorf("a header of %d bytes: Read = %q, %v", size, got, err)
		}
	}
}
