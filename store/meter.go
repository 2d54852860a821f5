package store

import (
	"context"
	"sync/atomic"
)

// Counter says what was read. It may be read while it grows.
type Counter struct {
	Objects atomic.Int64
	Bytes   atomic.Int64 // as stored: what came over the wire
}

// Meter reads from r and counts in c every object that was read whole.
func Meter(r Reader, c *Counter) Reader { return meter{r, c} }

type meter struct {
	Reader
	counter *Counter
}

func (m meter) Read(ctx context.Context, name string, dst []byte, limit int64) ([]byte, error) {
	out, err := m.Reader.Read(ctx, name, dst, limit)
	if err == nil || isSuspect(err) {
		m.counter.Objects.Add(1)
		m.counter.Bytes.Add(int64(len(out) - len(dst)))
	}
	return out, err
}
