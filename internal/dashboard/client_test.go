package dashboard

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"cairn/internal/daemon"
)

// TestFetch gets the status over both kinds of addresses.
func TestFetch(t *testing.T) {
	for network, at := range map[string]string{"tcp": "127.0.0.1:0", "unix": filepath.Join(t.TempDir(), "s")} {
		l, err := net.Listen(network, at)
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- New(sampleStatus, func() Totals { return Totals{} }).Serve(ctx, MaxConns, l) }()
		text, err := Fetch(t.Context(), daemon.Address{Network: network, At: l.Addr().String()})
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseStatus(text)
		if want := sampleStatus(); err != nil || got.Version != want.Version || len(got.Exports) != len(want.Exports) {
			t.Errorf("%s: ParseStatus = %+v, %v", network, got, err)
		}
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
}

// TestFetchUnavailable: no server, and servers of something else.
func TestFetchUnavailable(t *testing.T) {
	if _, err := Fetch(t.Context(), daemon.Address{Network: "unix", At: filepath.Join(t.TempDir(), "absent")}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Fetch of no server = %v", err)
	}
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	_, err := Fetch(t.Context(), daemon.Address{Network: "tcp", At: other.Listener.Addr().String()})
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "404") {
		t.Errorf("Fetch of another server = %v", err)
	}
	for _, text := range []string{"", "<html>", "{}", "null", `{"started": 1}`} {
		if s, err := ParseStatus([]byte(text)); !errors.Is(err, ErrUnavailable) {
			t.Errorf("ParseStatus(%s) = %+v, %v", text, s, err)
		}
	}
}

// TestParseLimit: a short text with many elements would take 100 times its size in memory.
func TestParseLimit(t *testing.T) {
	text := `{"started": "2026-01-01T00:00:00Z", "exports": [` + strings.Repeat("{},", maxElements) + "{}]}"
	if _, err := ParseStatus([]byte(text)); !errors.Is(err, ErrUnavailable) {
		t.Errorf("ParseStatus of %d exports = %v", maxElements, err)
	}
}

// endless is a body that does not end.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// TestFetchLimit: a status larger than the limit is refused.
func TestFetchLimit(t *testing.T) {
	if text, err := readStatus(endless{}, 1<<20); err == nil || !strings.Contains(err.Error(), "more than 1 MiB") {
		t.Errorf("readStatus of an endless body = %d bytes, %v", len(text), err)
	}
}
