package web_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"cairn/store"
	"cairn/store/storetest"
	"cairn/store/web"
)

// movedStore is a server that redirects all requests below /store.
type movedStore struct {
	url   string
	asked atomic.Int64
	to    atomic.Value // the target, with %s for the object's name
	code  int
}

func newMovedStore(t *testing.T, code int, to string) *movedStore {
	m := &movedStore{code: code}
	m.to.Store(to)
	m.url = serve(t, func(w http.ResponseWriter, r *http.Request) {
		m.asked.Add(1)
		to := strings.ReplaceAll(m.to.Load().(string), "%s", strings.TrimPrefix(r.URL.EscapedPath(), "/store/"))
		w.Header().Set("Location", to)
		w.WriteHeader(m.code)
	}) + "/store"
	return m
}

// echo answers with the path of the request, or 404 if the name ends in absent.
func echo(t *testing.T) string {
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "absent") {
			http.NotFound(w, r)
			return
		}
		io.WriteString(w, r.URL.Path)
	})
}

// TestStoreThatMoved: after a permanent redirect of a store its first server gets no more requests.
// After other redirects it gets one for each object.
func TestStoreThatMoved(t *testing.T) {
	target := echo(t)
	for name, test := range map[string]struct {
		code  int
		to    string
		query string
		asked int64
	}{
		"301":                  {301, target + "/new/%s", "", 1},
		"308":                  {308, target + "/new/%s", "", 1},
		"root":                 {301, target + "/%s", "", 1},
		"query goes along":     {301, target + "/new/%s?sig=1", "?sig=1", 1},
		"query is left out":    {301, target + "/new/%s", "?sig=1", 1},
		"302":                  {302, target + "/new/%s", "", 4},
		"303":                  {303, target + "/new/%s", "", 4},
		"307":                  {307, target + "/new/%s", "", 4},
		"signed for one":       {301, target + "/new/%s?sig=2", "?sig=1", 4},
		"one object elsewhere": {301, target + "/blobs/17", "", 4},
		"temporary in between": {301, newMovedStore(t, 302, target+"/new/%s").url + "/%s", "", 1},
	} {
		m := newMovedStore(t, test.code, test.to)
		r := newReader(t, m.url+test.query, web.Options{})
		for _, object := range []string{"a", "a space/b%", "c"} {
			if _, err := r.Read(t.Context(), object, nil, 1000); err != nil {
				t.Errorf("%s: Read(%s) = %v", name, object, err)
			}
		}
		if _, err := r.Stat(t.Context(), "d"); err != nil {
			t.Errorf("%s: Stat = %v", name, err)
		}
		if got := m.asked.Load(); got != test.asked {
			t.Errorf("%s: the first server was asked %d times for 4 objects, want %d", name, got, test.asked)
		}
	}
}

// TestStoreThatMovedAgain: the first server gets a request again when the other one does not
// answer, refuses, or lacks an object, since only the store that the user named proves absence.
func TestStoreThatMovedAgain(t *testing.T) {
	for name, gone := range map[string]http.HandlerFunc{
		"cut":    func(w http.ResponseWriter, _ *http.Request) { hijack(w, "") },
		"denied": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) },
		"absent": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) },
		"busy":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) },
	} {
		var failing atomic.Bool
		first := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if failing.Load() {
				gone(w, r)
			}
		})
		m := newMovedStore(t, 301, first+"/%s")
		r := newReader(t, m.url, web.Options{})
		if _, err := r.Read(t.Context(), "x", nil, 10); err != nil {
			t.Fatal(err)
		}
		failing.Store(true)
		m.to.Store(echo(t) + "/%s")
		for _, object := range []string{"y", "z"} {
			if got, err := r.Read(t.Context(), object, nil, 10); string(got) != "/"+object || err != nil {
				t.Errorf("%s: Read = %q, %v", name, got, err)
			}
		}
		if got := m.asked.Load(); got != 2 {
			t.Errorf("%s: the first server was asked %d times, want 2", name, got)
		}
	}
	m := newMovedStore(t, 301, echo(t)+"/%s")
	r := newReader(t, m.url, web.Options{})
	for range 3 {
		if _, err := r.Read(t.Context(), "absent", nil, 10); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("Read of an absent object = %v", err)
		}
		if _, err := r.Read(t.Context(), "x", nil, 10); err != nil {
			t.Errorf("Read = %v", err)
		}
	}
}

// TestMovedStoreShowsNothing: requests sent directly to the new location have no credentials of the
// first server, and writes are not sent there.
func TestMovedStoreShowsNothing(t *testing.T) {
	a := storetest.NewAuthority(t)
	last := newOrigin(t, "")
	m := newMovedStore(t, 308, last.url+"/%s")
	b := newBucket(t, m.url, laden(t, a))
	for i := range 3 {
		if _, err := b.Read(t.Context(), fmt.Sprint(i), nil, 10); err != nil {
			t.Fatal(err)
		}
		if shown := last.shows(); shown != "" {
			t.Errorf("request %d shows %s", i+1, shown)
		}
	}
	asked := len(last.got)
	if err := b.Write(t.Context(), "x", nil); !strings.Contains(fmt.Sprint(err), "redirect refused") || len(last.got) > asked {
		t.Errorf("Write = %v, and the other server was asked %d times more", err, len(last.got)-asked)
	}
	home := newMovedStore(t, 301, "/new/%s")
	if _, err := newReader(t, home.url, laden(t, a)).Read(t.Context(), "x", nil, 10); !strings.Contains(fmt.Sprint(err), "in a row") {
		t.Errorf("Read in a circle = %v", err)
	}
}
