package verify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"cairn/blob"
)

// LengthError says that an image is too short, or goes on behind its end with other bytes than zeros.
type LengthError struct{ text string }

func (e LengthError) Error() string { return e.text }

// Stream is Image for bytes that come once and in order. Behind the image they may be zeros only.
func Stream(ctx context.Context, x *blob.Index, r io.Reader, o Options) (Report, error) {
	j := newJob(x, o)
	in := &incoming{job: j, from: r}
	err := j.run(ctx, func() worker { return &streamChecker{checker{job: j}, in} })
	if err == nil {
		err = in.end(ctx)
	}
	return j.report, err
}

// streamChecker is one worker of Stream.
type streamChecker struct {
	checker
	in *incoming
}

func (c *streamChecker) take() (lo, hi int, err error) { return c.in.read(&c.buf) }

func (c *streamChecker) check(_ context.Context, lo, hi int) error {
	c.prove(lo, hi, c.buf)
	return nil
}

// incoming is a stream that several workers read, one at a time.
type incoming struct {
	job  *job
	mu   sync.Mutex // held while it is read, so that runs of chunks come in order
	from io.Reader
}

// read fills p with the next run of chunks. lo = hi when none are left.
func (s *incoming) read(p *[]byte) (lo, hi int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.job.index
	lo, hi = s.job.takeRun(readSize)
	if lo == hi {
		return lo, hi, nil
	}
	start, end := x.At(lo).Offset, x.At(hi-1).End()
	if int64(cap(*p)) < end-start {
		*p = make([]byte, max(end-start, readSize))
	}
	*p = (*p)[:end-start]
	n, err := io.ReadFull(s.from, *p)
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		err = LengthError{fmt.Sprintf("the length differs: it ends at %d, the image has %d bytes", start+int64(n), x.Size())}
	case err != nil:
		err = fmt.Errorf("reading at %d: %w", start+int64(n), err)
	}
	return lo, hi, err
}

// end reads what follows the image, which may be zeros.
func (s *incoming) end(ctx context.Context) error {
	rest := make([]byte, 64<<10)
	for at := s.job.index.Size(); ctx.Err() == nil; {
		n, err := s.from.Read(rest)
		if !blob.AllZero(rest[:n]) {
			return LengthError{fmt.Sprintf("the length differs: it has more than zeros behind the image's %d bytes", s.job.index.Size())}
		}
		at += int64(n)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading at %d: %w", at, err)
		}
	}
	return ctx.Err()
}
