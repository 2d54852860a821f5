package apply

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"cairn/blob"
	"cairn/blob/delta"
	"cairn/store"
)

// firstRequest is the size of the first request if the size of the table is unknown.
const firstRequest = 256 << 10

// Sizes are the sizes of a delta's file and of its head and table in bytes, as far as they are known; 0
// is unknown. A wrong size costs a request or some bytes.
type Sizes struct{ File, Head int64 }

// File is a delta's file, of which head and table are read.
type File struct {
	*delta.Delta
	reader store.Reader
	name   string
	ahead  []byte  // the first payloads, which the first request read
	whole  *stream // the rest of the file, if the store supports no ranges; else nil
}

// Open reads head and table of a delta for the image of x. The caller must Close the file. Absence is
// store.ErrNotFound, content that is not a delta for x is delta.ErrInvalid.
func Open(ctx context.Context, r store.Reader, name string, x *blob.Index, sizes Sizes) (*File, error) {
	f := &File{reader: r, name: name}
	if err := f.open(ctx, x, sizes); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (f *File) open(ctx context.Context, x *blob.Index, sizes Sizes) error {
	n := int64(firstRequest)
	switch {
	case 0 < sizes.File && sizes.File <= smallFile:
		n = sizes.File
	case delta.FirstBytes <= sizes.Head && sizes.Head <= delta.MaxHeadSize:
		n = sizes.Head
	}
	first, err := f.startStream(ctx, 0, n)
	if err != nil {
		return err
	}
	f.whole = first
	head := make([]byte, delta.FirstBytes)
	if k, err := io.ReadFull(first, head); err != nil {
		return explain(fmt.Errorf("%w: it ends after %d bytes", delta.ErrInvalid, k), err)
	}
	end, err := delta.TableEnd(head)
	if err != nil {
		return err
	}
	rest := &remainder{file: f, ctx: ctx, from: n, to: end}
	defer rest.close()
	if f.Delta, err = delta.Decode(io.MultiReader(bytes.NewReader(head), first, rest), x); err != nil {
		return err
	}
	if first.part.Size >= 0 && first.part.Size != f.FileSize() {
		return fmt.Errorf("%w: it has %d bytes instead of %d", delta.ErrInvalid, first.part.Size, f.FileSize())
	}
	return f.readAhead(first, min(n, f.FileSize()))
}

// explain returns the error of a read, or invalid if the file ended.
func explain(invalid, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return invalid
	}
	return err
}

// readAhead reads the payloads in the first n bytes of the file, which were requested with the table. It
// ends the request, unless more of the file follows.
func (f *File) readAhead(first *stream, n int64) error {
	if n > f.HeadSize() {
		f.ahead = make([]byte, n-f.HeadSize())
		if k, err := io.ReadFull(first, f.ahead); err != nil {
			return explain(fmt.Errorf("%w: it ends after %d bytes", delta.ErrInvalid, f.HeadSize()+int64(k)), err)
		}
	}
	if !first.part.Whole || f.readEnd() == f.FileSize() {
		f.Close()
		f.whole = nil
	}
	return nil
}

// Close ends the requests of the file.
func (f *File) Close() {
	if f.whole != nil {
		f.whole.close()
	}
}

// IsStream reports whether the store does not support ranges, so that payloads are read in order.
func (f *File) IsStream() bool { return f.whole != nil }

// readEnd returns the offset up to which the file is read.
func (f *File) readEnd() int64 { return f.HeadSize() + int64(len(f.ahead)) }

// missing returns how many bytes of q are not read ahead.
func (f *File) missing(q request) int64 { return max(0, q.end-max(q.offset, f.readEnd())) }

// stream is the answer to a request, which is read while other things happen. If it is the whole object, the bytes
// after the requested ones are received only when they are read, so that a plan knows how many bytes were received.
type stream struct {
	part     store.Part
	position int64 // offset in the file of the next byte; only of a stream of payloads
	asked    int64 // requested bytes that are still to be read
	pipe     *io.PipeReader
	more     chan struct{} // closed when more than the requested bytes are read
	end      context.CancelFunc
	done     chan struct{} // closed when the request has ended
}

// startStream requests n bytes from offset off on, and returns when the answer begins.
func (f *File) startStream(ctx context.Context, off, n int64) (*stream, error) {
	ctx, cancel := context.WithCancel(ctx)
	out, in := io.Pipe()
	s := &stream{asked: n, pipe: out, more: make(chan struct{}), end: cancel, done: make(chan struct{})}
	begun := make(chan store.Part, 1)
	var failed error
	go func() {
		defer close(s.done)
		failed = store.StreamRange(ctx, f.reader, f.name, off, n, func(p store.Part, r io.Reader) error {
			select {
			case begun <- p:
			default:
				return errors.New("the answer began twice")
			}
			return s.receive(ctx, in, r, n, p.Whole)
		})
		_ = in.CloseWithError(failed)
	}()
	select {
	case s.part = <-begun:
		return s, nil
	case <-s.done:
	}
	select {
	case s.part = <-begun: // it began and ended
		return s, nil
	default:
		cancel()
		return nil, failed
	}
}

// receive copies an answer: the n bytes that were requested, and the rest of a whole object when it is read.
func (s *stream) receive(ctx context.Context, to io.Writer, from io.Reader, n int64, whole bool) error {
	if whole {
		if _, err := io.CopyN(to, from, n); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		select {
		case <-s.more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	_, err := io.Copy(to, from)
	return err
}

// Read implements io.Reader. It must not be called concurrently.
func (s *stream) Read(p []byte) (n int, err error) {
	if s.asked > 0 {
		n, err = s.pipe.Read(p[:min(int64(len(p)), s.asked)])
		s.asked -= int64(n)
		return n, err
	}
	select {
	case <-s.more:
	default:
		close(s.more)
	}
	return s.pipe.Read(p)
}

// close ends the request, and blocks until it has ended.
func (s *stream) close() {
	s.end()
	_ = s.pipe.Close()
	<-s.done
}

// remainder reads the rest of a table that the first request did not reach. It is not requested unless
// it is read.
type remainder struct {
	file     *File
	ctx      context.Context
	from, to int64
	stream   *stream
}

func (r *remainder) Read(p []byte) (int, error) {
	if r.stream == nil {
		if r.from >= r.to {
			return 0, io.EOF
		}
		s, err := r.file.startStream(r.ctx, r.from, r.to-r.from)
		if err != nil {
			return 0, err
		}
		r.stream = s
		if s.part.Offset != r.from {
			return 0, errNoRanges
		}
	}
	return r.stream.Read(p)
}

func (r *remainder) close() {
	if r.stream != nil {
		r.stream.close()
	}
}

var errNoRanges = errors.New("the store sent the whole file instead of a part")
