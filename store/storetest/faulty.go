package storetest

import (
	"bytes"
	"context"
	"sync/atomic"

	"cairn/store"
)

// When selects calls by their number, counted from 1.
type When func(n int64) bool

// Always selects every call.
func Always(int64) bool { return true }

// Nth selects only the k-th call.
func Nth(k int64) When { return func(n int64) bool { return n == k } }

// First selects the first k calls.
func First(k int64) When { return func(n int64) bool { return n <= k } }

// After selects all calls after the first k.
func After(k int64) When { return func(n int64) bool { return n > k } }

// Fault converts the correct result of a call to the result for the caller. It may change data.
type Fault func(ctx context.Context, data []byte, err error) ([]byte, error)

// Fails returns err, such as store.ErrUnavailable.
func Fails(err error) Fault {
	return func(context.Context, []byte, error) ([]byte, error) { return nil, err }
}

// Truncates drops the last n bytes and reports no error.
func Truncates(n int) Fault {
	return func(_ context.Context, data []byte, err error) ([]byte, error) {
		return data[:max(0, len(data)-n)], err
	}
}

// FlipsBit changes one bit in the middle.
func FlipsBit(_ context.Context, data []byte, err error) ([]byte, error) {
	if len(data) > 0 {
		data[len(data)/2] ^= 0x10
	}
	return data, err
}

// Answers returns these bytes for any object, including an absent one.
func Answers(data []byte) Fault {
	return func(context.Context, []byte, error) ([]byte, error) { return bytes.Clone(data), nil }
}

// Hangs blocks until the context ends, and returns its error.
func Hangs(ctx context.Context, _ []byte, _ error) ([]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// Faulty returns a reader that applies fault to the Read calls of r selected by when. The limit is
// checked only on the correct result.
func Faulty(r store.Reader, when When, fault Fault) store.Reader {
	return &faulty{Reader: r, when: when, fault: fault}
}

type faulty struct {
	store.Reader
	when  When
	fault Fault
	calls atomic.Int64
}

func (f *faulty) Read(ctx context.Context, name string, dst []byte, limit int64) ([]byte, error) {
	if !f.when(f.calls.Add(1)) {
		return f.Reader.Read(ctx, name, dst, limit)
	}
	data, err := f.Reader.Read(ctx, name, nil, limit)
	data, err = f.fault(ctx, data, err)
	if err != nil {
		return nil, err
	}
	return append(dst, data...), nil
}

// FaultyWrites returns a bucket like b whose Write calls selected by when fail with err, also in
// batches.
func FaultyWrites(b store.Bucket, when When, err error) store.Bucket {
	return &faultyWrites{Bucket: b, when: when, err: err}
}

type faultyWrites struct {
	store.Bucket
	when  When
	err   error
	calls atomic.Int64
}

func (f *faultyWrites) Write(ctx context.Context, name string, data []byte) error {
	if f.when(f.calls.Add(1)) {
		return f.err
	}
	return f.Bucket.Write(ctx, name, data)
}
