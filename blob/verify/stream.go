package verify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"cairn/blob"
)

// LengthError reports that an image is too short, or has bytes other than zeros behind its end.
type LengthError struct{ text string }

func (e LengthError) Error() string { return e.text }

// Stream is Image for a stream. Behind the image the stream may have only zeros.
func Stream(ctx context.Context, x *blob.Index, r io.Reader, o Options) (Report, error) {
	j := newJob(x, o)
	in := &incoming{job: j, from: r}
	err := j.runWorkers(ctx, func() worker { return &streamChecker{checker{job: j}, in} })
	if err == nil {
		err = in.checkEnd(ctx)
	}
	return j.report, err
}

// streamChecker is a worker of Stream.
type streamChecker struct {
	checker
	in *incoming
}

func (c *streamChecker) takeRun() (lo, hi int, err error) { return c.in.readNext(&c.buf) }

func (c *streamChecker) checkRun(_ context.Context, lo, hi int) error {
	c.verifyRun(lo, hi, c.buf)
	return nil
}

// incoming is a stream that is shared by several workers.
type incoming struct {
	job  *job
	mu   sync.Mutex // held during a read, so that runs of chunks are read in order
	from io.Reader
}

// readNext reads the next run of chunks [lo, hi) into p; lo = hi means that none is left.
func (s *incoming) readNext(p *[]byte) (lo, hi int, err error) {
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

// checkEnd reads the bytes behind the image, which must be zeros.
func (s *incoming) checkEnd(ctx context.Context) error {
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
