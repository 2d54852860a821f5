package storetest

import (
	"context"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"cairn/store"
)

// Full is a bucket with all optional interfaces except store.Batcher.
type Full interface {
	store.Bucket
	store.Lister
	store.Creator
	store.Remover
}

// Counts holds the number of requests to a bucket, by kind. Deletes are those that remove one object or many.
type Counts struct {
	Gets, Heads, Puts, Lists, Deletes int64
}

// Sub returns the requests since before.
func (c Counts) Sub(before Counts) Counts {
	return Counts{c.Gets - before.Gets, c.Heads - before.Heads, c.Puts - before.Puts, c.Lists - before.Lists, c.Deletes - before.Deletes}
}

// Remote simulates a bucket behind a network. It delays each call by Latency, and each page of a
// listing. It has no batches and counts the requests. Latency 0 means no delay.
type Remote struct {
	Full
	Latency                  time.Duration
	gets, heads, puts, lists atomic.Int64 // removals are not counted
}

// pageSize is the number of names in one page of a listing, as in S3.
const pageSize = 1000

// Counts returns the counts since the last Reset.
func (r *Remote) Counts() Counts {
	return Counts{Gets: r.gets.Load(), Heads: r.heads.Load(), Puts: r.puts.Load(), Lists: r.lists.Load()}
}

// Reset sets the counts to 0.
func (r *Remote) Reset() {
	for _, n := range []*atomic.Int64{&r.gets, &r.heads, &r.puts, &r.lists} {
		n.Store(0)
	}
}

func (r *Remote) countAndSleep(ctx context.Context, count *atomic.Int64) error {
	count.Add(1)
	return store.Sleep(ctx, r.Latency)
}

// Read implements store.Reader.
func (r *Remote) Read(ctx context.Context, name string, dst []byte, limit int64) ([]byte, error) {
	if err := r.countAndSleep(ctx, &r.gets); err != nil {
		return nil, err
	}
	return r.Full.Read(ctx, name, dst, limit)
}

// StreamRange implements store.RangeStreamer.
func (r *Remote) StreamRange(
	ctx context.Context, name string, off, n int64, use func(store.Part, io.Reader) error,
) error {
	if err := r.countAndSleep(ctx, &r.gets); err != nil {
		return err
	}
	return store.StreamRange(ctx, r.Full, name, off, n, use)
}

// Stat implements store.Reader.
func (r *Remote) Stat(ctx context.Context, name string) (int64, error) {
	if err := r.countAndSleep(ctx, &r.heads); err != nil {
		return 0, err
	}
	return r.Full.Stat(ctx, name)
}

// Write implements store.Bucket.
func (r *Remote) Write(ctx context.Context, name string, data []byte) error {
	if err := r.countAndSleep(ctx, &r.puts); err != nil {
		return err
	}
	return r.Full.Write(ctx, name, data)
}

// Create implements store.Creator.
func (r *Remote) Create(ctx context.Context, name string, data []byte) error {
	if err := r.countAndSleep(ctx, &r.puts); err != nil {
		return err
	}
	return r.Full.Create(ctx, name, data)
}

// List implements store.Lister.
func (r *Remote) List(ctx context.Context, prefix string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		n := 0
		for o, err := range r.Full.List(ctx, prefix) {
			if n++; n%pageSize == 1 {
				if err := r.countAndSleep(ctx, &r.lists); err != nil {
					yield(o, err)
					return
				}
			}
			if !yield(o, err) {
				return
			}
		}
		if n == 0 {
			if err := r.countAndSleep(ctx, &r.lists); err != nil {
				yield(store.Object{}, err)
			}
		}
	}
}

// CountingProxy starts a reverse proxy for the web server at base, which counts the requests. It
// keeps the Host header, so signed requests stay valid. It stops at the end of the test.
func CountingProxy(t testing.TB, base string) (location string, counts func() Counts) {
	t.Helper()
	target, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	var gets, heads, puts, lists, deletes atomic.Int64
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.Out.URL.Scheme, r.Out.URL.Host = target.Scheme, target.Host
		r.Out.Host = r.In.Host
	}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch query := r.URL.Query(); {
		case r.Method == http.MethodHead:
			heads.Add(1)
		case r.Method == http.MethodGet && (query.Has("list-type") || query.Has("prefix")):
			lists.Add(1)
		case r.Method == http.MethodGet:
			gets.Add(1)
		case r.Method == http.MethodDelete || query.Has("delete"):
			deletes.Add(1)
		default: // PUT, and POST for multipart uploads
			puts.Add(1)
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return server.URL, func() Counts {
		return Counts{gets.Load(), heads.Load(), puts.Load(), lists.Load(), deletes.Load()}
	}
}
