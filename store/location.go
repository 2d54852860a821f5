package store

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// ParseURL reads a location that is a URL. Its errors hold nothing that may be of a password: one that is not escaped
// is taken for a port, and quoted.
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
