package dashboard

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"cairn/internal/daemon"
)

// ErrUnavailable reports that no cairn serve answers at an address.
var ErrUnavailable = errors.New("server unavailable")

const (
	fetchTimeout  = 10 * time.Second
	largestStatus = 64 << 20
	maxElements   = 1 << 19 // in a status; each may take 400 bytes of memory
)

// Fetch returns the /status.json of the server at an address, as ParseStatus takes it. It gives up after 10 s.
func Fetch(ctx context.Context, at daemon.Address) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, at.Network, at.At)
	}
	client := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	host := "localhost"
	if at.Network == "tcp" {
		host = at.At
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+"/status.json", nil)
	if err != nil {
		return nil, err
	}
	answer, err := client.Do(r)
	if err != nil { // without net/http's prefix, which quotes a URL that a unix socket does not have
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, cmp.Or(errors.Unwrap(err), err))
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%w: it answers %s, which is not a status of cairn serve", ErrUnavailable, answer.Status)
	}
	return readStatus(answer.Body, largestStatus)
}

// readStatus reads the body of an answer, of at most limit bytes.
func readStatus(body io.Reader, limit int64) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(body, limit+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	case int64(len(text)) > limit:
		return nil, fmt.Errorf("its answer has more than %d MiB", limit>>20)
	}
	return text, nil
}

// ParseStatus parses a /status.json. Other JSON and other texts are ErrUnavailable. Texts in the status may be anything.
func ParseStatus(text []byte) (Status, error) {
	if bytes.Count(text, []byte(",")) > maxElements {
		return Status{}, fmt.Errorf("%w: the answer has more than %d elements", ErrUnavailable, maxElements)
	}
	var s Status
	if err := json.Unmarshal(text, &s); err != nil || s.Started.IsZero() {
		return Status{}, fmt.Errorf("%w: the answer is not cairn serve's", ErrUnavailable)
	}
	return s, nil
}
