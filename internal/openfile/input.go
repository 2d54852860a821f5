package openfile

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"

	"cairn/internal/blockdev"
	"cairn/internal/disk"
)

// Input is an image that is open for reading: a file where any offset can be read, else a stream.
type Input struct {
	File      *blockdev.File // nil for a stream
	Stream    io.Reader      // nil for a file
	Partition bool           // the file is a partition of a disk or disk image
	opened    *os.File       // the FIFO, or a duplicate of an open file; nil if there is none to close
}

// Close closes the input. It leaves the open files of the process open.
func (i Input) Close() {
	if i.File != nil {
		i.File.Close()
	}
	if i.opened != nil {
		i.opened.Close()
	}
}

// OpenInput opens an image: "-" for stdin, a path of another open file of this process, a FIFO, or a location that
// disk.Resolve accepts.
func OpenInput(ctx context.Context, location string) (Input, error) {
	fd, open := Descriptor(location)
	if open = open || location == Dash; open {
		return descriptorInput(ctx, fd)
	}
	if info, err := os.Stat(location); err == nil && info.Mode()&fs.ModeNamedPipe != 0 {
		f, err := openFIFO(ctx, location, os.O_RDONLY)
		if err != nil {
			return Input{}, err
		}
		return Input{Stream: NewReader(ctx, f), opened: f}, nil
	}
	at, err := disk.Resolve(location)
	if err != nil {
		return Input{}, err
	}
	f, err := blockdev.OpenRead(at.Path, at.Section)
	return Input{File: f, Partition: at.Partition != nil}, err
}

// OpenReader opens a file or a FIFO for reading. Opening and reading a FIFO fail when the context ends.
func OpenReader(ctx context.Context, path string) (io.ReadCloser, error) {
	if info, err := os.Stat(path); err != nil || info.Mode()&fs.ModeNamedPipe == 0 {
		return os.Open(path)
	}
	f, err := openFIFO(ctx, path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{NewReader(ctx, f), f}, nil
}

func descriptorInput(ctx context.Context, fd int) (Input, error) {
	f, err := openDescriptor(fd)
	if err != nil {
		return Input{}, err
	}
	if err := RefuseClosed(fd, f); err != nil {
		return Input{}, err
	}
	var in Input
	if fd > stderr {
		in.opened = f
	}
	if off, err := f.Seek(0, io.SeekCurrent); err == nil {
		in.File, err = blockdev.OpenRead(fmt.Sprint("/proc/self/fd/", fd), blockdev.Section{Offset: off})
		if err == nil {
			return in, nil
		}
	}
	in.Stream = NewReader(ctx, f)
	return in, nil
}

// NewReader returns a reader of r that fails when the context ends. It does not wait for a running read of r.
func NewReader(ctx context.Context, r io.Reader) io.Reader {
	pr, pw := io.Pipe()
	go func() {
		_, err := io.CopyBuffer(struct{ io.Writer }{pw}, r, make([]byte, 1<<20))
		pw.CloseWithError(err)
	}()
	context.AfterFunc(ctx, func() { pr.CloseWithError(ctx.Err()) })
	return pr
}
