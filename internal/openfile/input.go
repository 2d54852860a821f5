package openfile

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"

	"cairn/internal/blockdev"
)

// OpenInput opens an image that is stdin, another open file of this process, or a FIFO: as a file where it can be read
// at any place, else as a stream. It returns neither for all other locations.
func OpenInput(ctx context.Context, location string) (*blockdev.File, io.Reader, error) {
	fd, open := Descriptor(location)
	if open = open || location == Dash; open {
		return openDescriptor(ctx, fd)
	}
	info, err := os.Stat(location)
	if err != nil || info.Mode()&fs.ModeNamedPipe == 0 {
		return nil, nil, nil //nolint:nilerr // the caller finds it again
	}
	f, err := openFIFO(ctx, location, os.O_RDONLY)
	if err != nil {
		return nil, nil, err
	}
	return nil, NewReader(ctx, f), nil
}

func openDescriptor(ctx context.Context, fd int) (*blockdev.File, io.Reader, error) {
	f := fileOf(fd)
	if f == nil {
		return nil, nil, fs.ErrInvalid
	}
	if err := RefuseClosed(fd, f); err != nil {
		return nil, nil, err
	}
	if off, err := f.Seek(0, io.SeekCurrent); err == nil {
		file, err := blockdev.OpenRead(fmt.Sprint("/proc/self/fd/", fd), blockdev.Section{Offset: off})
		if err == nil {
			return file, nil, nil
		}
	}
	return nil, NewReader(ctx, f), nil
}

// NewReader returns a reader of r that fails when the context ends. A read that is under way then is left alone.
func NewReader(ctx context.Context, r io.Reader) io.Reader {
	pr, pw := io.Pipe()
	go func() {
		_, err := io.CopyBuffer(struct{ io.Writer }{pw}, r, make([]byte, 1<<20))
		pw.CloseWithError(err)
	}()
	context.AfterFunc(ctx, func() { pr.CloseWithError(ctx.Err()) })
	return pr
}
