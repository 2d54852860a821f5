package chunkfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
)

// decodeGzip decodes exactly one member. The decoder's window is 32 KiB for any member.
func (d *Decoder) decodeGzip(dst, file []byte) error {
	in := bytes.NewReader(file)
	r, ok := d.gzip.Get().(*gzip.Reader)
	if !ok {
		r = new(gzip.Reader)
	}
	defer d.gzip.Put(r)
	if err := r.Reset(in); err != nil {
		return fmt.Errorf("decompressing: %w", err)
	}
	r.Multistream(false)
	n, err := io.ReadFull(r, dst)
	if err != nil {
		return fmt.Errorf("decompressing: %w (after %d of %d bytes)", err, n, len(dst))
	}
	switch n, err := r.Read(make([]byte, 1)); {
	case n > 0:
		return fmt.Errorf("it has more than %d bytes", len(dst))
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("decompressing: %w", err)
	case in.Len() > 0:
		return fmt.Errorf("%d bytes follow the compressed data", in.Len())
	}
	return nil
}

// gzipSize returns the content size in the last four bytes of a gzip member (RFC 1952).
func gzipSize(file []byte) uint64 {
	return uint64(binary.LittleEndian.Uint32(file[len(file)-4:]))
}
