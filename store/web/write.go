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

// errNoParent reports that the directory above an object is missing, on a server that does not
// create it.
var errNoParent = errors.New("the directory above it is missing there")

const mkcol = "MKCOL" // RFC 4918 §9.3

// Write implements store.Bucket. If the server reports a missing directory, Write makes it and its
// missing parents, and sends the object again.
func (b *Bucket) Write(ctx context.Context, name string, data []byte) error {
	err := b.putObject(ctx, name, data)
	if !errors.Is(err, errNoParent) {
		return err
	}
	above := parentURL(b.objectURL(name))
	if err := b.makeDirectory(ctx, above); err != nil {
		return addURL(ctx, above, fmt.Errorf("making the directory: %w", err))
	}
	return b.putObject(ctx, name, data)
}

// putObject sends an object. If the answer looks like a login form, putObject succeeds only if it
// can read the object back.
func (b *Bucket) putObject(ctx context.Context, name string, data []byte) error {
	err := b.requestObject(ctx, message{method: http.MethodPut, name: name, body: data}, ignoreAnswer)
	suspect, is := errors.AsType[*store.SuspectError](err)
	if !is {
		return err
	}
	got, readErr := b.Read(ctx, name, nil, int64(len(data)))
	_, has := errors.AsType[*store.SuspectError](readErr)
	if (readErr == nil || has) && bytes.Equal(got, data) {
		return nil
	}
	return addURL(ctx, b.objectURL(name), suspect.Err)
}

// makeDirectory makes a collection and its missing parents.
func (b *Bucket) makeDirectory(ctx context.Context, u *url.URL) error {
	slash := *u
	slash.Path += "/"
	slash.RawPath = u.EscapedPath() + "/"
	err := b.doMessage(ctx, message{method: mkcol, url: &slash}, ignoreAnswer)
	if above := parentURL(u); errors.Is(err, errNoParent) && above.Path != "" {
		if err := b.makeDirectory(ctx, above); err != nil {
			return err
		}
		return b.doMessage(ctx, message{method: mkcol, url: &slash}, ignoreAnswer)
	}
	return err
}

// parentURL returns the URL of the directory above u, without a trailing slash.
func parentURL(u *url.URL) *url.URL {
	above, path := *u, u.EscapedPath()
	above.RawPath = path[:max(strings.LastIndex(path, "/"), 0)]
	above.Path, _ = url.PathUnescape(above.RawPath) // cannot fail: part of a valid escaped path
	return &above
}
