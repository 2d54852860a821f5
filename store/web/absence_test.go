package web_test

import (
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"cairn/blob"
	"cairn/store"
	"cairn/store/web"
)

// TestErrorPageOfSuccess: Stat fails on a server that answers 200 for every chunk, whatever the
// page's type and with or without its size.
func TestErrorPageOfSuccess(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"json":  func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(`{"code":404}`)) },
		"empty": func(http.ResponseWriter, *http.Request) {},
		"chunked": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Transfer-Encoding", "chunked")
			w.Write([]byte("not found"))
		},
		"no HEAD": func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				w.WriteHeader(http.StatusMethodNotAllowed)
				return
			}
			w.Write([]byte("not found"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newReader(t, serve(t, answer), web.Options{})
			for range 2 {
				if size, err := r.Stat(t.Context(), store.ObjectName(blob.Digest{1}, true)); !errors.Is(err, web.ErrNoAbsence) {
					t.Errorf("Stat = %d, %v, want ErrNoAbsence", size, err)
				}
			}
		})
	}
}

// TestAbsenceIsProbedOnce: the probe for absence is sent once, and again only if the server is
// unavailable.
func TestAbsenceIsProbedOnce(t *testing.T) {
	has := store.ObjectName(blob.Digest{1}, false)
	for _, test := range []struct{ status, want int32 }{{http.StatusNotFound, 1}, {http.StatusForbidden, 1}, {http.StatusBadGateway, 3}} {
		var others atomic.Int32
		r := newReader(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, has) {
				w.Header().Set("Content-Length", "1")
				return
			}
			others.Add(1)
			w.WriteHeader(int(test.status))
		}), web.Options{})
		for range 3 {
			if _, err := r.Stat(t.Context(), has); err != nil {
				t.Fatal(err)
			}
		}
		if got := others.Load(); got != test.want {
			t.Errorf("with %d: %d requests for a chunk that cannot exist, want %d", test.status, got, test.want)
		}
	}
}
