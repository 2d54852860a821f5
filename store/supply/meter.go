package supply

import (
	"context"
	"io"
	"sync/atomic"

	"cairn/store"
)

// Counter counts objects and bytes that were read. Safe for concurrent use.
type Counter struct {
	Objects atomic.Int64
	Bytes   atomic.Int64 // as stored, before decompression
}

// meter counts every object that is read from a Reader, whole or in part.
type meter struct {
	store.Reader
	counter *Counter
}

// Unwrap is used by store.As.
func (m meter) Unwrap() store.Reader { return m.Reader }

func (m meter) Read(ctx context.Context, name string, dst []byte, limit int64) ([]byte, error) {
	out, err := m.Reader.Read(ctx, name, dst, limit)
	if err == nil || store.IsSuspect(err) {
		m.counter.Objects.Add(1)
		m.counter.Bytes.Add(int64(len(out) - len(dst)))
	}
	return out, err
}

// StreamRange implements store.RangeStreamer. It counts one object for each call of use, and the
// bytes that use reads, as it reads them.
func (m meter) StreamRange(
	ctx context.Context, name string, off, n int64, use func(store.Part, io.Reader) error,
) error {
	return store.StreamRange(ctx, m.Reader, name, off, n, func(part store.Part, in io.Reader) error {
		m.counter.Objects.Add(1)
		return use(part, readerFunc(func(p []byte) (int, error) {
			n, err := in.Read(p)
			m.counter.Bytes.Add(int64(n))
			return n, err
		}))
	})
}

// readerFunc is an io.Reader that calls the function.
type readerFunc func(p []byte) (int, error)

// Read implements io.Reader.
func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
