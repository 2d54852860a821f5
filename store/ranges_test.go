package store_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"testing"

	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/store/storetest"
)

// limitSeen is a Reader that keeps the limit of its last call.
type limitSeen struct {
	store.Reader
	limit int64
}

func (l *limitSeen) Read(_ context.Context, _ string, _ []byte, limit int64) ([]byte, error) {
	l.limit = limit
	return nil, store.ErrTooLarge
}

// streamSeen is a limitSeen that streams.
type streamSeen struct{ limitSeen }

func (s *streamSeen) Stream(_ context.Context, _ string, limit int64, _ func(io.Reader) error) error {
	s.limit = limit
	return store.ErrTooLarge
}

// TestStreamRangeWhole: an object of a Reader without ranges is passed on whole. It takes bounded
// memory if the Reader cannot stream.
func TestStreamRangeWhole(t *testing.T) {
	b := new(mem.Bucket)
	data := storetest.Bytes(1, 1000)
	if err := b.Write(t.Context(), "x", data); err != nil {
		t.Fatal(err)
	}
	part, got, err := storetest.ReadRange(t.Context(), struct{ store.Reader }{b}, "x", 10, 10)
	if want := (store.Part{Size: -1, Whole: true}); part != want || !bytes.Equal(got, data) || err != nil {
		t.Errorf("StreamRange = %d bytes of %+v, %v; want the whole object, %+v", len(got), part, err, want)
	}
	var read limitSeen
	var streamed streamSeen
	for r, limit := range map[store.Reader]*int64{&read: &read.limit, &streamed: &streamed.limit} {
		if _, _, err := storetest.ReadRange(t.Context(), r, "x", 10, 10); !errors.Is(err, store.ErrTooLarge) || *limit == 0 {
			t.Errorf("StreamRange = %v with the limit %d, want ErrTooLarge", err, *limit)
		}
	}
	if read.limit != 256<<20 || streamed.limit != math.MaxInt64 {
		t.Errorf("the limits are %d in memory, %d for a stream", read.limit, streamed.limit)
	}
}

// cutRanges is a bucket whose first range ends early.
type cutRanges struct {
	mem.Bucket
	calls int
}

func (c *cutRanges) StreamRange(
	ctx context.Context, name string, off, n int64, use func(store.Part, io.Reader) error,
) error {
	if c.calls++; c.calls > 1 {
		return c.Bucket.StreamRange(ctx, name, off, n, use)
	}
	return c.Bucket.StreamRange(ctx, name, off, n, func(part store.Part, in io.Reader) error {
		cut := io.MultiReader(io.LimitReader(in, 5), failingReader{})
		return use(part, cut)
	})
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) {
	return 0, &store.UnavailableError{Err: errors.New("cut")}
}

// TestRetryRange: a range that ends early is requested again, from its start.
func TestRetryRange(t *testing.T) {
	c := new(cutRanges)
	data := storetest.Bytes(1, 1000)
	if err := c.Write(t.Context(), "x", data); err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]store.Reader{
		"Retry":       store.Retry(c, store.Policy{First: 1}),
		"RetryBucket": store.RetryBucket(c, store.Policy{First: 1}),
	} {
		c.calls = 0
		part, got, err := storetest.ReadRange(t.Context(), r, "x", 100, 200)
		if want := (store.Part{Offset: 100, Size: 1000}); part != want || !bytes.Equal(got, data[100:300]) || err != nil || c.calls != 2 {
			t.Errorf("%s: %d bytes of %+v, %v, after %d calls; want %+v after 2", name, len(got), part, err, c.calls, want)
		}
	}
}
