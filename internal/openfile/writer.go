package openfile

import (
	"context"
	"errors"
	"io"
	"syscall"
	"time"
)

// writer is what NewWriter returns.
type writer struct {
	ctx  context.Context
	w    io.Writer
	gone func() // nil: EPIPE is ignored
}

// NewWriter returns a writer to w that does not wait for a reader when the context has ended: a write that is under way
// then is left alone, with its bytes. gone is called when the reader is gone (EPIPE).
func NewWriter(ctx context.Context, w io.Writer, gone func()) io.Writer { return writer{ctx, w, gone} }

// Optional returns NewWriter's writer for output that a job does not need: it ignores that the reader is gone.
func Optional(w io.Writer) io.Writer {
	if p, ok := w.(writer); ok {
		p.gone = nil
		return p
	}
	return w
}

func (p writer) Write(b []byte) (int, error) {
	n, err := p.write(b)
	switch {
	case !errors.Is(err, syscall.EPIPE):
	case p.gone == nil:
		return len(b), nil
	default:
		p.gone()
	}
	return n, err
}

func (p writer) write(b []byte) (int, error) {
	type result struct {
		n   int
		err error
	}
	done := make(chan result, 1)
	go func() {
		n, err := p.w.Write(b)
		done <- result{n, err}
	}()
	select {
	case r := <-done:
		return r.n, r.err
	case <-p.ctx.Done():
	}
	select {
	case r := <-done: // the last words of a job, when its output is read
		return r.n, r.err
	case <-time.After(time.Second):
		return 0, p.ctx.Err()
	}
}
