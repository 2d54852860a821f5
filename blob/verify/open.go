package verify

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"cairn/blob"
	"cairn/internal/openfile"
)

// Opened is an open file, device, partition or stream that should hold an image.
type Opened struct {
	index *blob.Index
	input openfile.Input
}

// Open opens the copy of x's image at a location in the form that openfile.OpenInput accepts. A device
// or partition may hold anything behind the image. A file may have zeros there, because a copy through
// NBD or from a device has whole sectors. Any other length is a LengthError. The length of a stream is
// not checked yet.
func Open(ctx context.Context, x *blob.Index, location string) (*Opened, error) {
	in, err := openfile.OpenInput(ctx, location)
	if err != nil {
		return nil, err
	}
	if err := checkLength(ctx, in, x.Size()); err != nil {
		in.Close()
		return nil, err
	}
	return &Opened{x, in}, nil
}

func checkLength(ctx context.Context, in openfile.Input, want int64) error {
	f := in.File
	switch {
	case f == nil:
		return nil
	case f.Size() < want:
		return LengthError{fmt.Sprintf("it has %d bytes, the image %d", f.Size(), want)}
	case f.IsDevice() || in.Partition:
		return nil
	}
	zeros, err := Zeros(ctx, f, want, f.Size())
	if err == nil && !zeros {
		err = LengthError{fmt.Sprintf("it has %d bytes, the image %d, and more than zeros behind it", f.Size(), want)}
	}
	return err
}

// Close closes the input.
func (i *Opened) Close() { i.input.Close() }

// startSize is the number of bytes at the start of a target that are zero while an assemble changes it.
const startSize = 4096

// Verify calls Image or Stream. It also sets Report.Unfinished.
func (i *Opened) Verify(ctx context.Context, o Options) (r Report, err error) {
	start := make([]byte, min(i.index.Size(), startSize))
	if stream := i.input.Stream; stream != nil {
		n, _ := io.ReadFull(stream, start) // the next read of the stream returns the error again
		start = start[:n]
		r, err = Stream(ctx, i.index, io.MultiReader(bytes.NewReader(start), stream), o)
	} else {
		r, err = Image(ctx, i.index, i.input.File, o)
		n, _ := i.input.File.ReadAt(start, 0)
		start = start[:n]
	}
	r.Unfinished = r.Bad > 0 && len(start) > 0 && blob.AllZero(start)
	return r, err
}
