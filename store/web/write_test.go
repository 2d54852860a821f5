package web_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/webdav"

	"cairn/store"
	"cairn/store/storetest"
	"cairn/store/web"
)

// TestMakesDirectories: Write makes directories on a server that does not, and answers 409.
func TestMakesDirectories(t *testing.T) {
	dir := t.TempDir()
	url := serve(t, webdavAt(dir).ServeHTTP)
	b := newBucket(t, url+"/not%20there/%25/ab/?sig=1", web.Options{})
	for _, name := range []string{"x", "a/b/c/deep", "a/b/more", "a space/percent%2Fsign/x", "plus+hash#what?/é"} {
		if err := b.Write(t.Context(), name, []byte(name)); err != nil {
			t.Errorf("Write(%s): %v", name, err)
		}
		if got, err := b.Read(t.Context(), name, nil, 100); err != nil || string(got) != name {
			t.Errorf("Read(%s) = %q, %v", name, got, err)
		}
	}
}

func webdavAt(dir string) http.Handler {
	return &webdav.Handler{FileSystem: webdav.Dir(dir), LockSystem: webdav.NewMemLS()}
}

// TestMakesDirectoriesOnce: a single writer requests each missing directory once, and no existing
// one.
func TestMakesDirectoriesOnce(t *testing.T) {
	var asked []string
	server := webdavAt(t.TempDir())
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.URL.Path)
		server.ServeHTTP(w, r)
	})
	b := newBucket(t, url+"/a", web.Options{})
	for _, name := range []string{"b/x", "b/y"} {
		if err := b.Write(t.Context(), name, []byte(name)); err != nil {
			t.Fatalf("Write(%s): %v", name, err)
		}
	}
	want := []string{"PUT /a/b/x", "MKCOL /a/b/", "MKCOL /a/", "MKCOL /a/b/", "PUT /a/b/x", "PUT /a/b/y"}
	if !slices.Equal(asked, want) {
		t.Errorf("the server is asked %q, want %q", asked, want)
	}
}

// TestWriteFaults: each case is an answer to PUT and Write's error for it. A nil error in a case
// stands for an error that matches none of those that callers decide by.
func TestWriteFaults(t *testing.T) {
	for name, test := range map[string]struct {
		status int
		want   error
		words  string
	}{
		"202": {202, nil, "202"},
		"206": {206, nil, "206"},
		"304": {304, nil, "304"},
		"400": {400, nil, "400"},
		"401": {401, store.ErrDenied, "401"},
		"402": {402, store.ErrDenied, "402"},
		"403": {403, store.ErrDenied, "403"},
		"404": {404, nil, "directory above it is missing"},
		"405": {405, nil, "takes no uploads"},
		"409": {409, nil, "directory above it is missing"},
		"411": {411, nil, "411"},
		"412": {412, nil, "412"},
		"413": {413, nil, "larger than the server takes"},
		"423": {423, store.ErrUnavailable, "423"},
		"429": {429, store.ErrUnavailable, "429"},
		"500": {500, store.ErrUnavailable, "500"},
		"501": {501, nil, "takes no uploads"},
		"503": {503, store.ErrUnavailable, "503"},
		"507": {507, nil, "no room left"},
	} {
		var puts int
		url := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPut {
				puts++
			}
			w.WriteHeader(test.status)
		})
		b := newBucket(t, url, web.Options{})
		err := b.Write(t.Context(), "x", []byte("data"))
		checkFault(t, nil, err, test.want)
		if !strings.Contains(fmt.Sprint(err), test.words) || !strings.Contains(fmt.Sprint(err), url) {
			t.Errorf("%s: Write = %v, want %q and the object in it", name, err, test.words)
		}
		if puts != 1 {
			t.Errorf("%s: it was sent %d times", name, puts)
		}
	}
}

// TestWriteToSilence: servers that read nothing, or read everything and do not answer.
func TestWriteToSilence(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"takes nothing": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"says nothing": func(_ http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		},
		"takes a part": func(_ http.ResponseWriter, r *http.Request) {
			io.CopyN(io.Discard, r.Body, 100_000)
			<-r.Context().Done()
		},
		"cuts": func(w http.ResponseWriter, r *http.Request) {
			io.CopyN(io.Discard, r.Body, 100_000)
			hijack(w, "")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			done := make(chan struct{})
			url := serve(t, func(w http.ResponseWriter, r *http.Request) {
				ctx, cancel := context.WithCancel(r.Context())
				defer cancel()
				go func() {
					select {
					case <-done:
					case <-ctx.Done():
					}
					cancel() // a server that does not read does not notice that the client has disconnected
				}()
				handler(w, r.WithContext(ctx))
			})
			defer close(done)
			for _, size := range []int{1000, 32 << 20} {
				err := newBucket(t, url, impatient).Write(t.Context(), "x", make([]byte, size))
				if size == 1000 && name == "cuts" {
					continue // the server has read everything by then
				}
				checkFault(t, nil, err, store.ErrUnavailable)
			}
		})
	}
}

// TestSlowUploadIsNotStalled: an upload may take longer than the patience in total.
func TestSlowUploadIsNotStalled(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	t.Parallel()
	want := storetest.Bytes(1, 48<<20)
	patient := web.Options{Patience: 4 * time.Second} // enough to send the kernel's buffers
	var got bytes.Buffer
	url := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		for {
			if n, err := io.CopyN(&got, r.Body, 2<<20); n == 0 || err != nil {
				return
			}
			wait(r.Context(), patient.Patience/14)
		}
	})
	if err := newBucket(t, url, patient).Write(t.Context(), "x", want); err != nil || !bytes.Equal(got.Bytes(), want) {
		t.Errorf("Write = %v, and the server has %d bytes", err, got.Len())
	}
}

// TestWriteCancelledMidway: a cancelled write leaves the old object and no other file.
func TestWriteCancelledMidway(t *testing.T) {
	dir := t.TempDir()
	nginx := storetest.Nginx(t, dir, storetest.WebDAV)
	b := newBucket(t, nginx, web.Options{})
	if err := b.Write(t.Context(), "x", []byte("old")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	body := make([]byte, 64<<20)
	var once sync.Once
	proxied := serve(t, func(w http.ResponseWriter, r *http.Request) {
		request, err := http.NewRequestWithContext(ctx, r.Method, nginx+r.URL.Path, io.TeeReader(r.Body, writerFunc(func() { once.Do(cancel) })))
		if err != nil {
			t.Error(err)
			return
		}
		request.ContentLength = r.ContentLength
		if answer, err := http.DefaultTransport.RoundTrip(request); err == nil {
			answer.Body.Close()
		}
	})
	if err := newBucket(t, proxied, web.Options{}).Write(ctx, "x", body); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled Write = %v, want context.Canceled", err)
	}
	if got, err := b.Read(t.Context(), "x", nil, 1<<30); err != nil || string(got) != "old" {
		t.Errorf("after a cancelled Write the object has %d bytes, %v", len(got), err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 1 {
		t.Errorf("a cancelled Write leaves %q", left)
	}
}

type writerFunc func()

func (f writerFunc) Write(p []byte) (int, error) {
	f()
	return len(p), nil
}

// TestIdleConnectionsAreReplaced: no write fails on a server that closes idle connections.
func TestIdleConnectionsAreReplaced(t *testing.T) {
	dir := t.TempDir()
	b := newBucket(t, storetest.Nginx(t, dir, storetest.WebDAV, "keepalive_requests 2;"), web.Options{})
	for i := range 20 {
		if err := b.Write(t.Context(), fmt.Sprint(i), []byte("x")); err != nil {
			t.Errorf("Write: %v", err)
		}
	}
	if files, err := os.ReadDir(dir); len(files) != 20 {
		t.Errorf("%d objects are there, %v", len(files), err)
	}
}

// TestNginxIgnoresIfNoneMatch: nginx ignores If-None-Match, which is why a Bucket is not a
// store.Creator. If a later nginx honours it, this test fails, and a Creator becomes possible for
// servers that prove it.
func TestNginxIgnoresIfNoneMatch(t *testing.T) {
	url := storetest.Nginx(t, t.TempDir(), storetest.WebDAV) + "/x"
	for _, want := range []int{http.StatusCreated, http.StatusNoContent} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPut, url, strings.NewReader("data"))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("If-None-Match", "*")
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != want {
			t.Errorf("PUT with If-None-Match is answered %s, want %d", answer.Status, want)
		}
	}
	if _, is := any(newBucket(t, url, web.Options{})).(store.Creator); is {
		t.Error("a Bucket is a store.Creator")
	}
}
