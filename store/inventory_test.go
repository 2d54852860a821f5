package store_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cairn/blob"
	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/store/storetest"
)

// remoteWith returns a bucket with an object of one byte for each digest.
func remoteWith(t *testing.T, chunks int) *storetest.Remote {
	t.Helper()
	b := new(mem.Bucket)
	for i := range chunks {
		mustWrite(t, b, store.ObjectName(numbered(i), i%3 > 0), []byte("x"))
	}
	return &storetest.Remote{Full: b}
}

func numbered(i int) blob.Digest { return blob.SHA256.Sum([]byte(fmt.Sprint(i))) }

func mustHave(t *testing.T, h store.Haser, d blob.Digest, want bool) {
	t.Helper()
	if got, err := h.Has(t.Context(), d); got != want || err != nil {
		t.Errorf("Has(%v) = %v, %v, want %v", d, got, err, want)
	}
}

func TestInventory(t *testing.T) {
	const chunks = 2000
	r := remoteWith(t, chunks)
	empty := numbered(chunks)
	mustWrite(t, r.Full, store.ObjectName(empty, true), nil)
	mustWrite(t, r.Full, "0foreign", []byte("x"))
	v := store.TakeInventory(t.Context(), r, store.InventoryOptions{Chunks: 100})
	defer v.Close()
	for i := range chunks {
		mustHave(t, v, numbered(i), true)
	}
	for i := range chunks { // the first is the empty one
		mustHave(t, v, numbered(chunks+i), false)
	}
	if got := r.Counts(); got.Heads != 0 || got.Lists > 16 {
		t.Errorf("the store was asked %+v, want at most 16 listings", got)
	}
}

// TestInventoryPrefix: only the names that may be queried are listed.
func TestInventoryPrefix(t *testing.T) {
	r := remoteWith(t, 1000)
	for _, prefix := range []string{"a", "b7"} {
		r.Reset()
		v := store.TakeInventory(t.Context(), r, store.InventoryOptions{Prefix: prefix})
		defer v.Close()
		for i := range 2000 {
			if d := numbered(i); d.String()[:len(prefix)] == prefix {
				mustHave(t, v, d, i < 1000)
			}
		}
		if got := r.Counts(); got.Heads != 0 || got.Lists > 16 {
			t.Errorf("the store was asked %+v, want at most 16 listings", got)
		}
	}
}

// unlisted hides the List method of a bucket.
type unlisted struct{ store.Bucket }

// badLister lists some objects, then fails.
type badLister struct {
	*storetest.Remote
	good int
	err  error
}

func (b badLister) List(ctx context.Context, prefix string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		n := 0
		for o, err := range b.Remote.List(ctx, prefix) {
			if n++; n > b.good {
				yield(store.Object{}, b.err)
				return
			}
			if !yield(o, err) {
				return
			}
		}
		yield(store.Object{}, b.err)
	}
}

// TestInventoryQueriesStore: a chunk that no listing answers is requested once.
func TestInventoryQueriesStore(t *testing.T) {
	for name, listed := range map[string]func(*storetest.Remote) store.Reader{
		"cannot list":   func(r *storetest.Remote) store.Reader { return unlisted{r} },
		"denied":        func(r *storetest.Remote) store.Reader { return badLister{r, 0, store.ErrDenied} },
		"breaks midway": func(r *storetest.Remote) store.Reader { return badLister{r, 3, store.ErrUnavailable} },
	} {
		t.Run(name, func(t *testing.T) {
			r := remoteWith(t, 200)
			v := store.TakeInventory(t.Context(), listed(r), store.InventoryOptions{})
			defer v.Close()
			var wg sync.WaitGroup
			for range 3 {
				for i := range 300 {
					wg.Go(func() { mustHave(t, v, numbered(i), i < 200) })
				}
			}
			wg.Wait()
			if got := r.Counts().Heads; got > 2*300 {
				t.Errorf("%d questions for 300 chunks", got)
			}
			if _, lists := listed(r).(store.Lister); lists != (v.Err() != nil) {
				t.Errorf("Err = %v", v.Err())
			}
		})
	}
}

// endless lists more names than any limit, all in one part.
type endless struct{ storetest.Full }

func (endless) List(ctx context.Context, prefix string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		if prefix != "a" {
			return // otherwise chance would decide which part uses up the limit
		}
		for i := 0; yield(store.Object{Name: store.ObjectName(listedDigest(prefix, i), true), Size: 1}, ctx.Err()); i++ {
		}
	}
}

// listedDigest returns the i-th digest that an endless listing yields.
func listedDigest(digit string, i int) blob.Digest {
	d, err := blob.ParseDigest(fmt.Sprintf("%s%015x%048x", digit, i, 0))
	if err != nil {
		panic(err)
	}
	return d
}

// TestInventoryLimit: the listing ends at its limit; its names count, and the other chunks are
// requested.
func TestInventoryLimit(t *testing.T) {
	r := &storetest.Remote{Full: new(mem.Bucket)}
	v := store.TakeInventory(t.Context(), endless{r}, store.InventoryOptions{Chunks: 10})
	defer v.Close()
	mustHave(t, v, listedDigest("a", 0), true)
	absent := listedDigest("a", 1<<30)
	mustHave(t, v, absent, false)
	mustHave(t, v, absent, false)
	if got := r.Counts().Heads; got != 2 {
		t.Errorf("%d questions for an absent chunk, want one for each of its names", got)
	}
}

// TestInventoryCancelled: cancelling ends the wait for a listing, and Close ends the listing.
func TestInventoryCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := remoteWith(t, 10)
		r.Latency = time.Hour
		v := store.TakeInventory(t.Context(), r, store.InventoryOptions{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := v.Has(ctx, numbered(0)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Has = %v, want %v", err, context.DeadlineExceeded)
		}
		v.Close()
	})
}

func TestSet(t *testing.T) {
	var s store.Set
	mustHave(t, &s, image()[0].digest, false)
	s.Add(indexOf(t, image()[:3]))
	s.Add(indexOf(t, image()[2:4]))
	for i, sample := range image() {
		mustHave(t, &s, sample.digest, i < 4)
	}
}
