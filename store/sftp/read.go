package sftp

import (
	"context"
	"fmt"
	"io"
	"slices"

	"cairn/store"
)

// How much of an object is asked for at once, and, before its size is known, on the off chance. A connection as
// ssh makes it has 2 MiB under way.
const (
	window     = 64 * blockSize
	ahead      = 4 * blockSize
	firstSpace = 1 << 20 // memory that a promised size may take before its bytes arrive
)

// reading is a file that is read from its start, with several requests under way.
type reading struct {
	ctx    context.Context
	conn   *conn
	handle string
	asked  int64   // where the next request begins
	pieces []piece // under way, in their order
}

// piece is a part of a file that was asked for.
type piece struct {
	off     int64
	size    int
	request *request
}

// ask asks for everything up to an offset, but for no more than the window holds.
func (r *reading) ask(end int64) error {
	for r.asked < end && len(r.pieces) < window/blockSize {
		size := int(min(blockSize, end-r.asked))
		p, err := r.piece(r.asked, size)
		if err != nil {
			return err
		}
		r.pieces = append(r.pieces, p)
		r.asked += int64(size)
	}
	return nil
}

func (r *reading) piece(off int64, size int) (piece, error) {
	request, err := r.conn.start(r.ctx, readPacket(r.handle, off, size))
	return piece{off, size, request}, err
}

// begin returns the file's size, with its first bytes under way: a small one is read in one round trip.
func (r *reading) begin(limit int64) (size int64, err error) {
	asked, err := r.conn.start(r.ctx, pathPacket(typeFstat, r.handle))
	if err != nil {
		return 0, err
	}
	if err := r.ask(min(ahead, limit)); err != nil {
		return 0, err
	}
	a, err := r.conn.wait(r.ctx, asked)
	if err != nil {
		return 0, err
	}
	size, err = fileSize(a)
	if err != nil {
		return 0, err
	}
	if size > limit {
		return 0, fmt.Errorf("%d bytes: %w (%d)", size, store.ErrTooLarge, limit)
	}
	for i, p := range r.pieces { // what was asked for on the off chance may go beyond
		r.pieces[i].size = int(max(0, min(int64(p.size), size-p.off)))
	}
	return size, nil
}

// all appends the whole file to dst.
func (r *reading) all(dst []byte, limit int64) ([]byte, error) {
	size, err := r.begin(limit)
	if err != nil {
		return nil, err
	}
	dst = slices.Grow(dst, int(min(size, firstSpace)))
	for got := int64(0); got < size; {
		data, err := r.next(got, size)
		if err != nil {
			return nil, err
		}
		dst = append(dst, data...)
		got += int64(len(data))
	}
	return dst, nil
}

// next returns the data behind the first got bytes of size.
func (r *reading) next(got, size int64) (data []byte, err error) {
	err = r.ask(size)
	if err == nil {
		data, err = r.first()
	}
	if err != nil {
		return nil, fmt.Errorf("after %d of %d bytes: %w", got, size, err)
	}
	return data, nil
}

// stream is a file as an io.Reader.
type stream struct {
	*reading
	got, size int64
	data      []byte // of what was got, not read yet
}

// Read implements io.Reader. Its errors are what a store.Reader promises.
func (s *stream) Read(p []byte) (int, error) {
	for len(s.data) == 0 {
		if s.got == s.size {
			return 0, io.EOF
		}
		data, err := s.next(s.got, s.size)
		if err != nil {
			return 0, explain(err)
		}
		s.data = data
		s.got += int64(len(data))
	}
	n := copy(p, s.data)
	s.data = s.data[n:]
	return n, nil
}

// first waits for the data of the first piece. If that is less than was asked for, the rest is asked for again.
func (r *reading) first() ([]byte, error) {
	p := r.pieces[0]
	a, err := r.conn.wait(r.ctx, p.request)
	if err != nil {
		return nil, err
	}
	data, err := a.data()
	data = data[:min(len(data), p.size)] // the file may have grown since
	switch {
	case hasCode(err, statusEOF):
		return nil, io.ErrUnexpectedEOF
	case err != nil:
		return nil, err
	case len(data) == 0:
		return nil, errGarbled
	case len(data) == p.size:
		r.pieces = r.pieces[1:]
		return data, nil
	}
	r.pieces[0], err = r.piece(p.off+int64(len(data)), p.size-len(data))
	return data, err
}
