package storetest

import (
	"bytes"
	"context"
	"sync/atomic"

	"cairn/store"
)

// When picks calls by their number, counted from 1.
type When func(n int64) bool

// Always picks every call.
func Always(int64) bool { return true }

// Nth picks the k-th call alone.
func Nth(k int64) When { return func(n int64) bool { return n == k } }

// First picks the first k calls.
func First(k int64) When { return func(n int64) bool { return n <= k } }

// After picks all calls but the first k.
func After(k int64) When { return func(n int64) bool { return n > k } }

// Fault makes of an honest answer what the caller gets. data is the fault's to change.
type Fault func(ctx context.Context, data []byte, err error) ([]byte, error)

// Fails answers with err, such as store.ErrUnavailable.
func Fails(err error) Fault {
	return func(context.Context, []byte, error) ([]byte, error) { return nil, err }
}

// Truncates loses the last n bytes, and does not say so.
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

// Answers gives these bytes for any object, also for one that is absent.
func Answers(data []byte) Fault {
	return func(context.Context, []byte, error) ([]byte, error) { return bytes.Clone(data), nil }
}

// Hangs answers only when the context ends, with its error.
func Hangs(ctx context.Context, _ []byte, _ error) ([]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// Faulty reads from r, with fault in the answers to the calls of Read that when picks. The limit is checked
// on the honest answer only.
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

// FaultyWrites is b, but the calls of Write that when picks, also those in batches, fail with err.
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
