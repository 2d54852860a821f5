package storetest_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/store/storetest"
)

func TestRemote(t *testing.T) {
	storetest.TestBucket(t, func(*testing.T) store.Bucket { return &storetest.Remote{Full: new(mem.Bucket)} })
}

// TestCountingProxy: the proxy passes on requests unchanged, with their Host, and counts them.
func TestCountingProxy(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Saw", strings.Join([]string{r.Method, r.Host, r.URL.RequestURI(), string(body)}, " "))
	}))
	defer server.Close()
	location, counts := storetest.CountingProxy(t, server.URL)
	host := strings.TrimPrefix(location, "http://")
	for _, c := range []struct{ method, path, body string }{
		{"GET", "/bucket/a%2Fb", ""}, {"HEAD", "/bucket/x", ""}, {"PUT", "/bucket/x", "data"}, {"PUT", "/bucket/y", ""},
		{"GET", "/bucket?list-type=2&prefix=0", ""}, {"DELETE", "/bucket/x", ""}, {"POST", "/bucket?delete=", "names"},
	} {
		request, err := http.NewRequestWithContext(t.Context(), c.method, location+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if got, want := answer.Header.Get("Saw"), strings.TrimSpace(strings.Join([]string{c.method, host, c.path, c.body}, " ")); got != want {
			t.Errorf("the server saw %q, want %q", got, want)
		}
	}
	if got, want := counts(), (storetest.Counts{Gets: 1, Heads: 1, Puts: 2, Lists: 1, Deletes: 2}); got != want {
		t.Errorf("counted %+v, want %+v", got, want)
	}
}
