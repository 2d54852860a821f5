package supply

import (
	"context"
	"sync/atomic"

	"cairn/store"
)

// Counter counts objects and bytes that were read. Safe for concurrent use.
type Counter struct {
	Objects atomic.Int64
	Bytes   atomic.Int64 // as stored, before decompression
}

// meter counts every object that is read whole from a Reader.
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
