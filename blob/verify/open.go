package verify

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"cairn/blob"
	"cairn/internal/openfile"
)

// Opened is a file, device, partition or stream that should hold an image, open for reading.
type Opened struct {
	index *blob.Index
	input openfile.Input
}

// Open opens what should hold the image of x, at a location as openfile.OpenInput takes it. Behind the image a device or
// partition may hold anything, a file zeros: a copy through NBD, or from a device, has whole sectors. Any other length is a
// LengthError. The length of a stream is not known yet.
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

// Close closes what was opened.
func (i *Opened) Close() { i.input.Close() }

// startSize is how many bytes of a target are zeros at least while an assemble changes it.
const startSize = 4096

// Verify is Image or Stream for what was opened. The report also tells whether it is Unfinished.
func (i *Opened) Verify(ctx context.Context, o Options) (r Report, err error) {
	start := make([]byte, min(i.index.Size(), startSize))
	if stream := i.input.Stream; stream != nil {
		n, _ := io.ReadFull(stream, start) // a stream that fails does so again
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
