package verify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"

	"cairn/blob"
)

// ErrLength says that a stream ends too early, or goes on behind the image with other bytes than zeros.
var ErrLength = errors.New("the length differs")

// Stream is Image for bytes that come once and in order. Behind the image they may be zeros only.
func Stream(ctx context.Context, x *blob.Index, r io.Reader, o Options) (Report, error) {
	j := &job{index: x, options: o, report: Report{Size: x.Size()}}
	in := &incoming{job: j, from: r}
	group, groupCtx := errgroup.WithContext(ctx)
	for range max(o.Workers, 1) {
		group.Go(func() error {
			c := checker{job: j}
			for groupCtx.Err() == nil {
				lo, hi, err := in.read(&c.buf)
				if lo == hi || err != nil {
					return err
				}
				c.prove(lo, hi, c.buf)
				j.done(lo, hi)
			}
			return groupCtx.Err()
		})
	}
	err := group.Wait()
	if err == nil {
		err = in.end(ctx)
	}
	j.report.First = j.ranges()
	if err != nil {
		return j.report, err
	}
	return j.report, ctx.Err()
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
	lo, hi = s.job.take(func(lo int) int { return x.Span(lo, readSize) })
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
		err = fmt.Errorf("%w: it ends at %d, the image has %d bytes", ErrLength, start+int64(n), x.Size())
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
			return fmt.Errorf("%w: it has more than zeros behind the image's %d bytes", ErrLength, s.job.index.Size())
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
