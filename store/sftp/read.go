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

// all appends the whole file to dst, in one round trip if it is small.
func (r *reading) all(dst []byte, limit int64) ([]byte, error) {
	asked, err := r.conn.start(r.ctx, pathPacket(typeFstat, r.handle))
	if err != nil {
		return nil, err
	}
	if err := r.ask(min(ahead, limit)); err != nil {
		return nil, err
	}
	a, err := r.conn.wait(r.ctx, asked)
	if err != nil {
		return nil, err
	}
	size, err := fileSize(a)
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, fmt.Errorf("%d bytes: %w (%d)", size, store.ErrTooLarge, limit)
	}
	return r.upTo(dst, size)
}

// upTo appends the first size bytes to dst.
func (r *reading) upTo(dst []byte, size int64) ([]byte, error) {
	for i, p := range r.pieces { // what was asked for on the off chance may go beyond
		r.pieces[i].size = int(max(0, min(int64(p.size), size-p.off)))
	}
	dst = slices.Grow(dst, int(min(size, firstSpace)))
	for got := int64(0); got < size; {
		var data []byte
		err := r.ask(size)
		if err == nil {
			data, err = r.first()
		}
		if err != nil {
			return nil, fmt.Errorf("after %d of %d bytes: %w", got, size, err)
		}
		dst = append(dst, data...)
		got += int64(len(data))
	}
	return dst, nil
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
