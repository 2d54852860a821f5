package web_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"cairn/store"
	"cairn/store/web"
)

// forwardAll starts a proxy that connects to the same server for every name, and sets it for this test.
func forwardAll(t *testing.T, server string) {
	proxy := serve(t, func(w http.ResponseWriter, r *http.Request) {
		there, err := net.Dial("tcp", strings.TrimPrefix(server, "http://"))
		if err != nil {
			t.Error(err)
			return
		}
		defer there.Close()
		here, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer here.Close()
		if r.Write(there) == nil {
			_, _ = io.Copy(here, there)
		}
	})
	t.Setenv("HTTP_PROXY", proxy)
	t.Setenv("NO_PROXY", "0.0.0.0,169.254.1.1")
}

// TestRedirectInside: a redirect from a server elsewhere to an address of this machine or its links is
// refused before a connection is opened. It is not retried.
func TestRedirectInside(t *testing.T) {
	inner := newOrigin(t, "")
	port := inner.url[strings.LastIndex(inner.url, ":"):]
	for _, code := range []int{http.StatusFound, http.StatusPermanentRedirect} {
		for _, host := range []string{"127.0.0.1" + port, "localhost" + port, "0.0.0.0" + port, "[::ffff:127.0.0.1]" + port, "169.254.1.1"} {
			outer := serve(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Location", "http://"+host+r.URL.Path)
				w.Header().Set("Connection", "close")
				w.WriteHeader(code)
			})
			forwardAll(t, outer)
			r := newReader(t, "http://store.example.com/", web.Options{})
			_, readErr := r.Read(t.Context(), "x", nil, 10)
			_, statErr := r.Stat(t.Context(), "x")
			for _, err := range []error{readErr, statErr} {
				if !strings.Contains(fmt.Sprint(err), "redirect refused") || errors.Is(err, store.ErrUnavailable) {
					t.Errorf("%d to %s: %v, want it refused", code, host, err)
				}
			}
		}
	}
	if n := len(inner.got); n > 0 {
		t.Errorf("the inner server got %d requests", n)
	}
}

// TestRedirectOutside: a server on this machine may redirect within the machine, until the redirects have
// left it.
func TestRedirectOutside(t *testing.T) {
	inner := newOrigin(t, "")
	forwardAll(t, newOrigin(t, inner.url+"/x").url)
	if _, err := newReader(t, newOrigin(t, inner.url+"/x").url, web.Options{}).Read(t.Context(), "x", nil, 10); err != nil {
		t.Errorf("Read with a redirect within this machine: %v", err)
	}
	_, err := newReader(t, newOrigin(t, "http://store.example.com/x").url, web.Options{}).Read(t.Context(), "x", nil, 10)
	if !strings.Contains(fmt.Sprint(err), "redirect refused") || len(inner.got) != 1 {
		t.Errorf("Read with a redirect away and back = %v, with %d requests", err, len(inner.got))
	}
}
