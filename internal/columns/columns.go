// Package columns encodes and decodes the compressed tables of cairn's own formats. A table has columns, each with one
// value for every row, so that similar numbers stand together. Numbers are varints: seven bits in each byte, the low
// ones first, in as few bytes as possible.
package columns

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// window is the zstd window of a table, which is memory of its reader.
const window = 1 << 20

// Compress returns the zstd frame of a table.
func Compress(table []byte) ([]byte, error) {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderCRC(false),
		zstd.WithWindowSize(window), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	return z.EncodeAll(table, nil), nil
}

// Reader decodes the columns of a table. After the first error it decodes zeros.
type Reader struct {
	r   *bufio.Reader
	err error
}

// Read decompresses a table, of at most limit bytes, and calls decode to read all of its columns. It returns the first
// error, also if the table has more bytes than decode reads.
func Read(table []byte, limit int64, decode func(c *Reader)) error {
	z, err := zstd.NewReader(bytes.NewReader(table), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(window))
	if err != nil {
		return err
	}
	defer z.Close()
	c := &Reader{r: bufio.NewReader(io.LimitReader(z, limit))}
	decode(c)
	if c.err == nil {
		if _, err := c.r.ReadByte(); err == nil {
			c.Fail("more bytes than its columns need")
		} else if err != io.EOF {
			c.err = err
		}
	}
	return c.err
}

// Err returns the first error.
func (c *Reader) Err() error { return c.err }

// Fail sets the error, unless there is one.
func (c *Reader) Fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf(format, args...)
	}
}

// Bytes fills p.
func (c *Reader) Bytes(p []byte) {
	if c.err != nil {
		clear(p)
		return
	}
	if _, err := io.ReadFull(c.r, p); err != nil {
		clear(p)
		c.setReadError(err)
	}
}

// Byte reads one byte.
func (c *Reader) Byte() byte {
	if c.err != nil {
		return 0
	}
	b, err := c.r.ReadByte()
	if err != nil {
		c.setReadError(err)
	}
	return b
}

func (c *Reader) setReadError(err error) {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	c.err = err
}

// Uvarint reads a number of at most limit, in as few bytes as possible.
func (c *Reader) Uvarint(limit uint64) (v uint64) {
	for shift := 0; c.err == nil; shift += 7 {
		b := c.Byte()
		v |= uint64(b&0x7f) << shift
		switch {
		case c.err != nil:
		case b < 0x80 && (b == 0 && shift > 0 || v > limit || shift == 63 && b > 1):
			c.Fail("a number is too large, or longer than it needs to be")
		case b < 0x80:
			return v
		case shift == 63:
			c.Fail("a number is too large")
		}
	}
	return 0
}

// Varint reads a signed number: 2·v for v ≥ 0, −2·v−1 for v < 0.
func (c *Reader) Varint() int64 {
	u := c.Uvarint(1<<64 - 1)
	return int64(u>>1) ^ -int64(u&1)
}
