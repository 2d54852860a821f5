package store

import (
	"context"
	"fmt"
	"io"
	"math"
)

// Part describes the bytes that a reader holds of an object.
type Part struct {
	Offset int64 // of the reader's first byte in the object
	Size   int64 // of the object in bytes; -1 if unknown
	// Whole reports that the store sent the whole object in place of the range. It does not support
	// ranges, or the range covers the object.
	Whole bool
}

// RangeStreamer is a Reader that can read parts of objects.
type RangeStreamer interface {
	// StreamRange calls use with a reader of the n bytes of the object from offset off on, or of
	// fewer if the object ends before, and returns the error of use. The reader returns io.EOF only
	// after all of them. part describes the bytes; its Offset is off.
	//
	// If the store does not support ranges, the reader holds the whole object: part.Whole is true
	// and part.Offset is 0. Bytes that use does not read are not downloaded, except for those in
	// buffers.
	//
	// A range that begins at or after the object's end is ErrRange. A server that sends other bytes
	// than the range is an error before use is called. Other errors are those of Read. An object
	// that was replaced between two calls shows in part.Size, if its size is another one.
	StreamRange(ctx context.Context, name string, off, n int64, use func(part Part, in io.Reader) error) error
}

// largestWhole limits the memory for an object of a Reader that is neither a RangeStreamer nor a
// Streamer.
const largestWhole = 256 << 20

// StreamRange calls r's own StreamRange, or passes the whole object to use if r is not a
// RangeStreamer. It does not look below a wrapper, whose limits would not see the bytes.
func StreamRange(ctx context.Context, r Reader, name string, off, n int64, use func(Part, io.Reader) error) error {
	if own, ok := r.(RangeStreamer); ok {
		return own.StreamRange(ctx, name, off, n, use)
	}
	if err := CheckRange(off, n); err != nil {
		return err
	}
	limit := int64(largestWhole)
	if _, ok := r.(Streamer); ok {
		limit = math.MaxInt64
	}
	return Stream(ctx, r, name, limit, func(in io.Reader) error { return use(Part{Size: -1, Whole: true}, in) })
}

// CheckRange refuses a range that is empty, negative, or longer than any object. Every
// RangeStreamer checks its ranges with it.
func CheckRange(off, n int64) error {
	if off < 0 || n < 1 || off > math.MaxInt64-n {
		return fmt.Errorf("%d bytes from %d on are not a range", n, off)
	}
	return nil
}
