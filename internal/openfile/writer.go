package openfile

import (
	"context"
	"errors"
	"io"
	"syscall"
	"time"
)

// writer is the writer of NewWriter and Optional.
type writer struct {
	ctx  context.Context
	w    io.Writer
	gone func() // nil means that EPIPE is ignored
}

// NewWriter returns a writer to w that stops waiting for the reader one second after the context ends. It then
// abandons the running write and its bytes. The writer calls gone when the reader has closed the pipe (EPIPE).
func NewWriter(ctx context.Context, w io.Writer, gone func()) io.Writer { return writer{ctx, w, gone} }

// Optional returns NewWriter's writer for output that a job does not need: it ignores a closed pipe.
func Optional(w io.Writer) io.Writer {
	if p, ok := w.(writer); ok {
		p.gone = nil
		return p
	}
	return w
}

func (p writer) Write(b []byte) (int, error) {
	n, err := p.writeUntilDone(b)
	switch {
	case !errors.Is(err, syscall.EPIPE):
	case p.gone == nil:
		return len(b), nil
	default:
		p.gone()
	}
	return n, err
}

func (p writer) writeUntilDone(b []byte) (int, error) {
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
	case r := <-done: // the last message of a job, if its reader still reads
		return r.n, r.err
	case <-time.After(time.Second):
		return 0, p.ctx.Err()
	}
}
