package s3_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cairn/store"
	"cairn/store/s3"
)

// guard is a server that accepts one pair of keys at a time.
type guard struct {
	mu      sync.Mutex // guards all below
	id      string
	token   string
	refusal http.HandlerFunc // the answer to other keys
	asked   []string         // the key IDs of the requests
}

func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, id, _ := strings.Cut(r.Header.Get("Authorization"), "Credential=")
	id, _, _ = strings.Cut(id, "/")
	g.asked = append(g.asked, id)
	if id != g.id || r.Header.Get("X-Amz-Security-Token") != g.token {
		g.refusal(w, r)
		return
	}
	w.Header().Set("Content-Length", "4")
	if r.Method == "GET" {
		io.WriteString(w, "data")
	}
}

// accept changes the accepted keys, and returns the key IDs of the requests since the last call.
func (g *guard) accept(id, token string) (asked []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	asked = g.asked
	g.id, g.token, g.asked = id, token, nil
	return asked
}

func guarded(t *testing.T, refusal http.HandlerFunc, query string) (*guard, *s3.Bucket) {
	t.Helper()
	g := &guard{refusal: refusal}
	server := httptest.NewServer(g)
	t.Cleanup(server.Close)
	return g, openBucket(t, "s3+"+server.URL+"/bucket"+query, patient)
}

// TestNewKeysInTheFile: new keys in the file are used after the old ones are refused with any error
// code, or with none. Each call is repeated at most once.
func TestNewKeysInTheFile(t *testing.T) {
	for name, refusal := range map[string]http.HandlerFunc{
		"expired": refuses(400, "ExpiredToken"),
		"unknown": refuses(403, "InvalidAccessKeyId"),
		"changed": refuses(403, "SignatureDoesNotMatch"),
		"silent":  refuses(403, ""),
		"401":     refuses(401, ""),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "credentials")
			g, b := guarded(t, refusal, "?profile=p")
			profile(t, path, "id-1", "secret")
			g.accept("id-1", "")
			if _, err := b.Read(t.Context(), "x", nil, 10); err != nil {
				t.Fatal(err)
			}
			g.accept("id-2", "")
			profile(t, path, "id-2", "other")
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					if _, err := b.Read(t.Context(), "x", nil, 10); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			g.accept("id-3", "")
			profile(t, path, "id-4", "wrong too")
			if _, err := b.Read(t.Context(), "x", nil, 10); !errors.Is(err, store.ErrDenied) {
				t.Errorf("Read = %v, want ErrDenied", err)
			}
			if asked := g.accept("", ""); fmt.Sprint(asked) != "[id-2 id-4]" {
				t.Errorf("asked as %v, want one more try", asked)
			}
		})
	}
}

// TestDeniedIsNotExpired: a request that is denied with valid keys is not repeated.
func TestDeniedIsNotExpired(t *testing.T) {
	path := filepath.Join(t.TempDir(), "credentials")
	g, b := guarded(t, refuses(403, "AccessDenied"), "?profile=p")
	profile(t, path, "id-1", "secret")
	if _, err := b.Read(t.Context(), "x", nil, 10); !errors.Is(err, store.ErrDenied) {
		t.Errorf("Read = %v, want ErrDenied", err)
	}
	if asked := g.accept("", ""); len(asked) != 1 {
		t.Errorf("asked as %v", asked)
	}
}

// TestWhereKeysAreFound: the sources of keys are used in their order.
func TestWhereKeysAreFound(t *testing.T) {
	read := func(query, want, token string) {
		t.Helper()
		g, b := guarded(t, refuses(403, "AccessDenied"), query)
		g.accept(want, token)
		if got, err := b.Read(t.Context(), "x", nil, 10); string(got) != "data" {
			t.Errorf("Read = %q, %v, asked as %v, want %s", got, err, g.accept("", ""), want)
		}
	}
	read("", "", "") // no keys
	path := filepath.Join(t.TempDir(), "credentials")
	text := "[default]\naws_access_key_id = id-default\naws_secret_access_key = s\n" +
		"[p]\naws_access_key_id = id-p\naws_secret_access_key = s\naws_session_token = token-p\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", path)
	read("", "id-default", "")
	t.Setenv("AWS_PROFILE", "p")
	read("", "id-p", "token-p")
	t.Setenv("AWS_ACCESS_KEY_ID", "id-env")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "s")
	t.Setenv("AWS_SESSION_TOKEN", "token-env")
	read("", "id-env", "token-env")
	read("?profile=p", "id-p", "token-p")
	read("?profile=default", "id-default", "")
}

// TestNamedProfileWithoutKeys: a named profile without keys is an error, and no anonymous request
// is sent.
func TestNamedProfileWithoutKeys(t *testing.T) {
	g, b := guarded(t, refuses(403, "AccessDenied"), "?profile=absent")
	g.accept("", "")
	if _, err := b.Read(t.Context(), "x", nil, 10); err == nil || !strings.Contains(err.Error(), "profile absent") {
		t.Errorf("Read = %v, want an error about the profile", err)
	}
	t.Setenv("AWS_PROFILE", "absent")
	g, b = guarded(t, refuses(403, "AccessDenied"), "")
	if _, err := b.Read(t.Context(), "x", nil, 10); err == nil || len(g.accept("", "")) > 0 {
		t.Errorf("Read = %v, want an error about the profile", err)
	}
}

// TestDeniedWithoutKeys: the error of a denied request without keys says that none were found.
func TestDeniedWithoutKeys(t *testing.T) {
	g, b := guarded(t, refuses(403, "AccessDenied"), "")
	g.accept("somebody", "")
	_, err := b.Read(t.Context(), "x", nil, 10)
	if !errors.Is(err, store.ErrDenied) || !strings.Contains(err.Error(), "without keys") {
		t.Errorf("Read = %v, want to be told that there are no keys", err)
	}
}

// TestContainerKeys: the keys of a container are fetched once, and used until they expire.
func TestContainerKeys(t *testing.T) {
	var handedOut atomic.Int64
	container := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handedOut.Add(1)
		json.NewEncoder(w).Encode(map[string]any{
			"AccessKeyID": "id-c", "SecretAccessKey": "s", "Token": "token-c", "Expiration": time.Now().Add(time.Hour),
		})
	}))
	defer container.Close()
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", container.URL)
	g, b := guarded(t, refuses(403, "AccessDenied"), "")
	g.accept("id-c", "token-c")
	for range 3 {
		if _, err := b.Read(t.Context(), "x", nil, 10); err != nil {
			t.Fatal(err)
		}
	}
	if n := handedOut.Load(); n != 1 {
		t.Errorf("asked for keys %d times, want once", n)
	}
}

// TestKeysWithRedirect: a request for keys follows no redirect.
func TestKeysWithRedirect(t *testing.T) {
	var asked atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer other.Close()
	container := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusTemporaryRedirect))
	defer container.Close()
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", container.URL)
	_, b := guarded(t, refuses(403, "AccessDenied"), "")
	_, err := b.Read(t.Context(), "x", nil, 10)
	if n := asked.Load(); err == nil || n > 0 {
		t.Errorf("Read = %v, and the target of the redirect got %d requests", err, n)
	}
}

// TestKeysThatHang: a silent source of keys does not block a call beyond its context.
func TestKeysThatHang(t *testing.T) {
	container := httptest.NewServer(http.HandlerFunc(silent))
	defer container.Close()
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", container.URL)
	_, b := guarded(t, refuses(403, "AccessDenied"), "")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	for range 2 { // one sends the request, the other waits for it
		wg.Go(func() {
			if _, err := b.Read(ctx, "x", nil, 10); !errors.Is(err, ctx.Err()) || err == nil {
				t.Errorf("Read = %v, want the context's end", err)
			}
		})
	}
	wg.Wait()
}

// TestProxy runs the test binary again, since net/http reads the environment only once.
func TestProxy(t *testing.T) {
	if os.Getenv("CAIRN_TEST_PROXIED") != "" {
		got, err := openBucket(t, "s3+http://s3.example.com/bucket", patient).Read(t.Context(), "x", nil, 10)
		if string(got) != "proxied" {
			t.Errorf("Read = %q, %v", got, err)
		}
		return
	}
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.RequestURI != "http://s3.example.com/bucket/x" {
			t.Errorf("the proxy is asked for %s", r.RequestURI)
		}
		io.WriteString(w, "proxied")
	}))
	defer proxy.Close()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestProxy$")
	cmd.Env = append(os.Environ(), "CAIRN_TEST_PROXIED=1", "HTTP_PROXY="+proxy.URL)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
