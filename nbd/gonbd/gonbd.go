// Package gonbd joins package nbd to github.com/pojntfx/go-nbd, in both directions: a device of ours as one
// of its backends, and one of its backends as a device of ours. It is the only package that imports go-nbd.
// It knows nothing of images, and adds nothing that the other side does not have.
package gonbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/pojntfx/go-nbd/pkg/backend"

	"cairn/nbd"
)

// Backend hands out a device as a go-nbd backend. Its calls have no context of their own, so ctx is theirs:
// when it ends, what waits fails. A device that is no nbd.Writer refuses writes with EPERM.
//
// For go-nbd's server, mind that Options.SupportsMultiConn must be set, or no client connects, that its
// ReadOnly does not tell clients so, and that a read that fails ends the connection.
func Backend(ctx context.Context, dev nbd.Device) backend.Backend {
	w, _ := dev.(nbd.Writer)
	return &outgoing{ctx, dev, w}
}

type outgoing struct {
	ctx    context.Context
	dev    nbd.Device
	writer nbd.Writer // nil if dev is read-only
}

var _ backend.Backend = (*outgoing)(nil)

// ReadAt reads as io.ReaderAt says. go-nbd's server asks for whatever its client asks for, so that the
// bounds are looked after here.
func (b *outgoing) ReadAt(p []byte, off int64) (int, error) {
	n, err := b.within(p, off)
	if n > 0 {
		if err := b.dev.ReadAt(b.ctx, p[:n], off); err != nil {
			return 0, err
		}
	}
	return n, err
}

// WriteAt writes as io.WriterAt says, and nothing at all if p reaches beyond the end.
func (b *outgoing) WriteAt(p []byte, off int64) (int, error) {
	if b.writer == nil {
		return 0, syscall.EPERM
	}
	if _, err := b.within(p, off); err != nil {
		return 0, fmt.Errorf("writing %d bytes at %d: %w", len(p), off, syscall.ENOSPC)
	}
	if err := b.writer.WriteAt(b.ctx, p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// within is how many bytes of p, which belongs at off, lie within the device, and io.EOF if not all do.
func (b *outgoing) within(p []byte, off int64) (int, error) {
	size := b.dev.Size()
	if off < 0 || off > size {
		return 0, io.EOF
	}
	if left := size - off; left < int64(len(p)) {
		return int(left), io.EOF
	}
	return len(p), nil
}

func (b *outgoing) Size() (int64, error) { return b.dev.Size(), nil }

// Sync flushes. It has nothing to do for a device that cannot be written.
func (b *outgoing) Sync() error {
	if b.writer == nil {
		return nil
	}
	return b.writer.Flush(b.ctx)
}

// Device makes a device of a go-nbd backend. It is an nbd.Writer: set nbd.Export.ReadOnly if it should not
// be written. Its size is asked for once. A backend's calls cannot be interrupted: the end of a context
// only keeps those from being made that were not begun.
func Device(b backend.Backend) (nbd.Device, error) {
	size, err := b.Size()
	if err != nil {
		return nil, fmt.Errorf("asking a backend for its size: %w", err)
	}
	return &incoming{b, size}, nil
}

type incoming struct {
	b    backend.Backend
	size int64
}

var (
	_ nbd.Device = (*incoming)(nil)
	_ nbd.Writer = (*incoming)(nil)
)

func (d *incoming) Size() int64 { return d.size }

func (d *incoming) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	n, err := d.b.ReadAt(p, off)
	return whole(n, len(p), err)
}

func (d *incoming) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	n, err := d.b.WriteAt(p, off)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return err
}

func (d *incoming) Flush(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return d.b.Sync()
}

// whole is what an io.ReaderAt's result means for someone who wants all: io.EOF with all bytes is fine.
func whole(n, want int, err error) error {
	switch {
	case n == want:
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}
