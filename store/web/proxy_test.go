package web_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cairn/internal/tlsfiles"
	"cairn/store"
	"cairn/store/storetest"
)

// proxyFor starts a proxy that demands a password, and connects to the same server for every name.
func proxyFor(t *testing.T, address string) string {
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte("worker:hush"))
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Proxy-Authorization") != want {
			w.WriteHeader(http.StatusProxyAuthRequired)
			return
		}
		there, err := net.Dial("tcp", address)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer there.Close()
		here, rest, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer here.Close()
		if r.Method == http.MethodConnect {
			io.WriteString(here, head("200 OK"))
			go io.Copy(there, rest)
		} else if r.Header.Del("Proxy-Authorization"); r.Write(there) != nil {
			return
		}
		io.Copy(here, there)
	})
}

// proxyJob is the variable with TestProxy's arguments to the process that it starts, since net/http
// reads the environment once.
const proxyJob = "CAIRN_TEST_PROXY_JOB"

// TestProxy: requests go through a proxy of the environment that demands a password.
func TestProxy(t *testing.T) {
	if os.Getenv(proxyJob) != "" {
		readThroughProxy(t)
		return
	}
	dir, a := t.TempDir(), storetest.NewAuthority(t)
	writeFile(t, filepath.Join(dir, "x"), "data")
	plain, secure := storetest.Nginx(t, dir, "keepalive_timeout 0;"), storetest.NginxTLS(t, dir, a)
	for scheme, server := range map[string]string{"http": plain, "https": secure} {
		if testing.Short() && scheme == "http" {
			continue // each case runs in its own process
		}
		proxy := proxyFor(t, strings.TrimPrefix(server, scheme+"://"))
		for user, want := range map[string]string{
			"worker:hush@": "data", "": "denied", "worker:hush2@": "denied", "dead": "unavailable",
		} {
			at := strings.Replace(proxy, "://", "://"+user, 1)
			if user == "dead" {
				at = "http://worker:hush@127.0.0.1:1"
			}
			if got := inProxyProcess(t, at, scheme+"://store.test/", a.Cert); !strings.Contains(got, "\nresult "+want+" ") || strings.Contains(got, "hush") {
				t.Errorf("%s through a proxy as %q: %s; want %s", scheme, user, got, want)
			}
		}
	}
}

func inProxyProcess(t *testing.T, proxy, base, ca string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProxy$", "-test.v")
	cmd.Env = append(os.Environ(), "HTTP_PROXY="+proxy, "HTTPS_PROXY="+proxy, "NO_PROXY=", proxyJob+"="+base+" "+ca)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("the process that reads through a proxy: %v: %s", err, out)
	}
	return string(out)
}

func readThroughProxy(t *testing.T) {
	base, ca, _ := strings.Cut(os.Getenv(proxyJob), " ")
	got, err := newReader(t, base, trusting(t, tlsfiles.Files{CA: ca})).Read(t.Context(), "x", nil, 10)
	kind := string(got)
	switch {
	case errors.Is(err, store.ErrDenied):
		kind = "denied"
	case errors.Is(err, store.ErrUnavailable):
		kind = "unavailable"
	case err != nil:
		kind = "failed"
	}
	fmt.Printf("\nresult %s %v\n", kind, err)
}
