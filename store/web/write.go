package web

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"cairn/store"
)

// errNoParent says that the directory above an object is missing, in the word of servers that do not make it.
var errNoParent = errors.New("the directory above it is missing there")

const mkcol = "MKCOL" // RFC 4918 §9.3

// Write implements store.Bucket. On a server that does not make the directories above an object, they are made
// when it asks for them.
func (b *Bucket) Write(ctx context.Context, name string, data []byte) error {
	err := b.put(ctx, name, data)
	if !errors.Is(err, errNoParent) {
		return err
	}
	above := parent(b.url(name))
	if err := b.makeDirectory(ctx, above); err != nil {
		return named(ctx, above, fmt.Errorf("making the directory: %w", err))
	}
	return b.put(ctx, name, data)
}

// put sends an object. An answer that may as well be a login form's is believed when the object can be read back.
func (b *Bucket) put(ctx context.Context, name string, data []byte) error {
	err := b.do(ctx, http.MethodPut, name, data, ignore)
	suspect, is := errors.AsType[*store.SuspectError](err)
	if !is {
		return err
	}
	got, readErr := b.Read(ctx, name, nil, int64(len(data)))
	_, has := errors.AsType[*store.SuspectError](readErr)
	if (readErr == nil || has) && bytes.Equal(got, data) {
		return nil
	}
	return named(ctx, b.url(name), suspect.Err)
}

// makeDirectory makes a collection, and those above it as far as they are missing.
func (b *Bucket) makeDirectory(ctx context.Context, u *url.URL) error {
	slash := *u
	slash.Path += "/"
	slash.RawPath = u.EscapedPath() + "/"
	err := b.exchange(ctx, message{method: mkcol, url: &slash}, ignore)
	if above := parent(u); errors.Is(err, errNoParent) && above.Path != "" {
		if err := b.makeDirectory(ctx, above); err != nil {
			return err
		}
		return b.exchange(ctx, message{method: mkcol, url: &slash}, ignore)
	}
	return err
}

// parent is the URL of the directory that something lies in, without a slash at its end.
func parent(u *url.URL) *url.URL {
	above, path := *u, u.EscapedPath()
	above.RawPath = path[:max(strings.LastIndex(path, "/"), 0)]
	above.Path, _ = url.PathUnescape(above.RawPath) // a part of what was well escaped is so too
	return &above
}
