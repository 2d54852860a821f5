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

// Input is an image that is open for reading: a file where it can be read at any place, else a stream.
type Input struct {
	File      *blockdev.File // nil for a stream
	Stream    io.Reader      // nil for a file
	Partition bool           // the file is a partition of a disk or disk image
}

// Close closes a file. A stream is left alone.
func (i Input) Close() {
	if i.File != nil {
		i.File.Close()
	}
}

// OpenInput opens an image: "-" is stdin, other open files of this process and FIFOs are named by their paths, and all
// else is a location as disk.Resolve takes it.
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
		return Input{Stream: NewReader(ctx, f)}, nil
	}
	at, err := disk.Resolve(location)
	if err != nil {
		return Input{}, err
	}
	f, err := blockdev.OpenRead(at.Path, at.Section)
	return Input{File: f, Partition: at.Partition != nil}, err
}

func descriptorInput(ctx context.Context, fd int) (Input, error) {
	f, err := openDescriptor(fd)
	if err != nil {
		return Input{}, err
	}
	if err := RefuseClosed(fd, f); err != nil {
		return Input{}, err
	}
	if off, err := f.Seek(0, io.SeekCurrent); err == nil {
		file, err := blockdev.OpenRead(fmt.Sprint("/proc/self/fd/", fd), blockdev.Section{Offset: off})
		if err == nil {
			return Input{File: file}, nil
		}
	}
	return Input{Stream: NewReader(ctx, f)}, nil
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
