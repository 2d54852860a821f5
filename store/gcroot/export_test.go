package gcroot

import (
	"context"
	"strconv"
	"time"
)

// EndedProcess returns the announcement of a process of this machine that has ended.
func EndedProcess() []byte {
	p := thisProcess()
	ticks, _ := strconv.Atoi(p.Started)
	p.Started = strconv.Itoa(ticks - 1) // another process had the number before
	return p.encode()
}

// NewDeadline returns a context that ends when limit has passed since a time.
func NewDeadline(ctx context.Context, since time.Time, limit time.Duration) context.Context {
	at := now()
	at.clock = since
	return deadline{ctx, at, limit}
}
