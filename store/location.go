package store

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// ParseURL parses a location that is a URL. Its errors never quote a part that may belong to a
// password: net/url takes an unescaped password for a port and quotes it.
func ParseURL(location string) (*url.URL, error) {
	u, err := url.Parse(location)
	if err == nil {
		return u, nil
	}
	wrapped, ok := errors.AsType[*url.Error](err)
	if !ok || strings.Contains(location, "@") {
		return nil, errors.New("not a URL (before an @, the characters / ? # are written %2F %3F %23)")
	}
	return nil, fmt.Errorf("not a URL: %w", wrapped.Err)
}
