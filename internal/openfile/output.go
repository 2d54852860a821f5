package openfile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"cairn/internal/blockdev"
)

// Output accepts bytes in order. It writes to stdout, another open file of this process, or a FIFO.
type Output struct {
	io.Writer // to file
	file      *os.File
	durable   bool // a regular file or block device, which Close flushes
	sparse    bool // a regular file without O_APPEND
	// KeepRest keeps the bytes of a regular file after the last written byte. NewOutput sets it for a file whose
	// offset is not 0.
	KeepRest bool
}

// NewOutput returns the output of an open file. w writes to the file.
func NewOutput(w io.Writer, f *os.File) (*Output, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	regular := info.Mode().IsRegular()
	o := &Output{Writer: w, file: f, durable: regular || blockdev.IsBlockDevice(info)}
	if !regular {
		return o, nil
	}
	flags, err := Flags(f)
	if err != nil {
		return nil, err
	}
	o.sparse = flags&unix.O_APPEND == 0
	start, err := f.Seek(0, io.SeekCurrent)
	o.KeepRest = start > 0
	return o, err
}

// OpenOutput opens stdout, another open file of this process, or a FIFO. It returns nil for all other names.
func OpenOutput(ctx context.Context, name string) (*Output, error) {
	fd, open := Descriptor(name)
	if name == Dash {
		fd, open = Stdout, true
	}
	if open {
		return descriptorOutput(ctx, fd)
	}
	info, err := os.Stat(name)
	if err != nil || info.Mode()&fs.ModeNamedPipe == 0 {
		return nil, nil //nolint:nilerr // the caller meets the error again
	}
	f, err := openFIFO(ctx, name, os.O_WRONLY)
	if err != nil {
		return nil, err
	}
	return NewOutput(NewWriter(ctx, f, func() {}), f)
}

func descriptorOutput(ctx context.Context, fd int) (*Output, error) {
	f, err := openDescriptor(fd)
	if err != nil {
		return nil, err
	}
	if err := RefuseClosed(fd, f); err != nil {
		return nil, err
	}
	flags, err := Flags(f)
	switch {
	case err != nil:
		return nil, err
	case flags&unix.O_ACCMODE == unix.O_RDONLY:
		return nil, fmt.Errorf("%s is %w", f.Name(), ErrReadOnly)
	}
	return NewOutput(NewWriter(ctx, f, func() {}), f)
}

// WriteZeros writes n zeros, or leaves a hole after the end of a regular file.
func (o *Output) WriteZeros(n int64) error {
	if !o.sparse {
		return writeZeros(o.Writer, n)
	}
	at, err := o.file.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	info, err := o.file.Stat()
	if err != nil {
		return err
	}
	old := min(max(info.Size()-at, 0), n)
	if err := writeZeros(o.Writer, old); err != nil {
		return err
	}
	_, err = o.file.Seek(n-old, io.SeekCurrent)
	return err
}

func writeZeros(w io.Writer, n int64) error {
	zeros := make([]byte, min(n, 1<<20))
	for n > 0 {
		k, err := w.Write(zeros[:min(n, int64(len(zeros)))])
		if err != nil {
			return err
		}
		n -= int64(k)
	}
	return nil
}

// File returns the open file.
func (o *Output) File() *os.File { return o.file }

// Close flushes a regular file or block device to the medium, and closes the output. It truncates a regular
// file after the last byte unless KeepRest is set.
func (o *Output) Close() error {
	err := o.setSize()
	if o.durable {
		err = errors.Join(err, o.file.Sync())
	}
	return errors.Join(err, o.file.Close())
}

func (o *Output) setSize() error {
	if !o.sparse {
		return nil
	}
	at, err := o.file.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	info, err := o.file.Stat()
	if err != nil || at < info.Size() && o.KeepRest || at == info.Size() {
		return err
	}
	return o.file.Truncate(at)
}
