package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"cairn/testimages"
)

// TestCannotCreate: --create-only with a server that cannot create an index is wrong usage, and nothing is sent.
func TestCannotCreate(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, testimages.Random(1, 300_000), 0o600); err != nil {
		t.Fatal(err)
	}
	var sent atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodHead && r.URL.Path == "/bucket":
		case r.Header.Get("If-None-Match") != "":
			w.WriteHeader(http.StatusNotImplemented)
		case r.Method == http.MethodPut:
			sent.Add(1)
			w.Header().Set("ETag", `"x"`)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(server.Close)
	for kind, location := range map[string]string{"S3": "s3+" + server.URL + "/bucket/x.caibx", "HTTP": server.URL + "/x.caibx"} {
		c := exec.CommandContext(t.Context(), "cairn", "make", location, image, "--create-only")
		c.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID=a", "AWS_SECRET_ACCESS_KEY=b")
		out, _ := c.CombinedOutput() // the status is checked below
		if status := c.ProcessState.ExitCode(); status != exitUsage || !strings.Contains(string(out), "hint: leave --create-only out") {
			t.Errorf("%s: status %d, %s", kind, status, out)
		}
	}
	if n := sent.Load(); n > 0 {
		t.Errorf("%d objects were sent", n)
	}
}
