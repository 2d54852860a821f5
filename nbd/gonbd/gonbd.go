// Package gonbd connects package nbd to github.com/pojntfx/go-nbd in both directions: an nbd.Device
// as a go-nbd backend, and a go-nbd backend as an nbd.Device. It is the only package that imports
// go-nbd. It knows nothing of images, and adds no feature that the other side lacks.
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

// Backend returns a device as a go-nbd backend. The backend's methods take no context and use ctx
// instead: when it ends, blocked calls fail. A device that does not implement nbd.Writer refuses
// writes with EPERM.
//
// Three traps of go-nbd's server: no client connects unless Options.SupportsMultiConn is set, its
// ReadOnly is not announced to clients, and a failed read ends the connection.
func Backend(ctx context.Context, dev nbd.Device) backend.Backend {
	w, _ := dev.(nbd.Writer)
	return &deviceBackend{ctx, dev, w}
}

type deviceBackend struct {
	ctx    context.Context
	dev    nbd.Device
	writer nbd.Writer // nil if dev is read-only
}

var _ backend.Backend = (*deviceBackend)(nil)

// ReadAt implements io.ReaderAt. It checks the bounds, because go-nbd's server passes on any range
// that its client requests.
func (b *deviceBackend) ReadAt(p []byte, off int64) (int, error) {
	n, err := b.boundLength(p, off)
	if n > 0 {
		if err := b.dev.ReadAt(b.ctx, p[:n], off); err != nil {
			return 0, err
		}
	}
	return n, err
}

// WriteAt implements io.WriterAt. It writes nothing if p reaches beyond the end of the device.
func (b *deviceBackend) WriteAt(p []byte, off int64) (int, error) {
	if b.writer == nil {
		return 0, syscall.EPERM
	}
	if _, err := b.boundLength(p, off); err != nil {
		return 0, fmt.Errorf("writing %d bytes at %d: %w", len(p), off, syscall.ENOSPC)
	}
	if err := b.writer.WriteAt(b.ctx, p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// boundLength returns the number of bytes of p, at off, that lie within the device. The error is
// io.EOF unless all do.
func (b *deviceBackend) boundLength(p []byte, off int64) (int, error) {
	size := b.dev.Size()
	if off < 0 || off > size {
		return 0, io.EOF
	}
	if left := size - off; left < int64(len(p)) {
		return int(left), io.EOF
	}
	return len(p), nil
}

func (b *deviceBackend) Size() (int64, error) { return b.dev.Size(), nil }

// Sync flushes the device. It does nothing for a read-only device.
func (b *deviceBackend) Sync() error {
	if b.writer == nil {
		return nil
	}
	return b.writer.Flush(b.ctx)
}

// Device returns a go-nbd backend as an nbd.Device. It requests the backend's size once. The device
// implements nbd.Writer; set nbd.Export.ReadOnly to prevent writes. The backend's calls cannot be
// interrupted: the end of a context only prevents further calls.
func Device(b backend.Backend) (nbd.Device, error) {
	size, err := b.Size()
	if err != nil {
		return nil, fmt.Errorf("asking a backend for its size: %w", err)
	}
	return &backendDevice{b, size}, nil
}

type backendDevice struct {
	b    backend.Backend
	size int64
}

var (
	_ nbd.Device = (*backendDevice)(nil)
	_ nbd.Writer = (*backendDevice)(nil)
)

func (d *backendDevice) Size() int64 { return d.size }

func (d *backendDevice) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	n, err := d.b.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil // also with io.EOF, as io.ReaderAt allows
	case err == nil || errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}

func (d *backendDevice) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	n, err := d.b.WriteAt(p, off)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return err
}

func (d *backendDevice) Flush(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return d.b.Sync()
}
