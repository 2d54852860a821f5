package storetest

import (
	"context"
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

// Full is a bucket that can do all that buckets can do, but batches.
type Full interface {
	store.Bucket
	store.Lister
	store.Creator
	store.Remover
}

// Counts are how often a bucket was asked for what.
type Counts struct {
	Gets, Heads, Puts, Lists int64
}

// Remote is a bucket as it is behind a network: each call takes its latency, a listing does so for each page,
// it has no batches, and what is asked of it is counted. The zero latency is none.
type Remote struct {
	Full
	Latency                  time.Duration
	gets, heads, puts, lists atomic.Int64
}

// page is how many names an answer to a listing holds, as at S3.
const page = 1000

// Counts are those so far.
func (r *Remote) Counts() Counts {
	return Counts{r.gets.Load(), r.heads.Load(), r.puts.Load(), r.lists.Load()}
}

// Reset begins to count anew.
func (r *Remote) Reset() {
	for _, n := range []*atomic.Int64{&r.gets, &r.heads, &r.puts, &r.lists} {
		n.Store(0)
	}
}

func (r *Remote) wait(ctx context.Context, count *atomic.Int64) error {
	count.Add(1)
	return store.Sleep(ctx, r.Latency)
}

// Read implements store.Reader.
func (r *Remote) Read(ctx context.Context, name string, dst []byte, limit int64) ([]byte, error) {
	if err := r.wait(ctx, &r.gets); err != nil {
		return nil, err
	}
	return r.Full.Read(ctx, name, dst, limit)
}

// Stat implements store.Reader.
func (r *Remote) Stat(ctx context.Context, name string) (int64, error) {
	if err := r.wait(ctx, &r.heads); err != nil {
		return 0, err
	}
	return r.Full.Stat(ctx, name)
}

// Write implements store.Bucket.
func (r *Remote) Write(ctx context.Context, name string, data []byte) error {
	if err := r.wait(ctx, &r.puts); err != nil {
		return err
	}
	return r.Full.Write(ctx, name, data)
}

// Create implements store.Creator.
func (r *Remote) Create(ctx context.Context, name string, data []byte) error {
	if err := r.wait(ctx, &r.puts); err != nil {
		return err
	}
	return r.Full.Create(ctx, name, data)
}

// List implements store.Lister.
func (r *Remote) List(ctx context.Context, prefix string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		n := 0
		for o, err := range r.Full.List(ctx, prefix) {
			if n++; n%page == 1 {
				if err := r.wait(ctx, &r.lists); err != nil {
					yield(o, err)
					return
				}
			}
			if !yield(o, err) {
				return
			}
		}
		if n == 0 {
			if err := r.wait(ctx, &r.lists); err != nil {
				yield(store.Object{}, err)
			}
		}
	}
}

// CountingProxy is a web server before the one at base that hands every request on as it is, and counts them:
// also those that are signed, since it leaves the name of the host alone. It ends with the test.
func CountingProxy(t testing.TB, base string) (location string, counts func() Counts) {
	t.Helper()
	target, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	var gets, heads, puts, lists atomic.Int64
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
		default: // PUT, and POST of what is put in parts
			puts.Add(1)
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return server.URL, func() Counts { return Counts{gets.Load(), heads.Load(), puts.Load(), lists.Load()} }
}
