package boottrace

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
)

// Chunk is a chunk of an image, without its bytes.
type Chunk struct {
	ID     int // of its content: equal in all images; -1 means zeros
	Size   int64
	Stored int64 // size in a store
}

// Shape holds the chunks of an image: enough to replay a boot from it, and small.
type Shape []Chunk

// Encode returns the shape as compressed lines of numbers.
func (s Shape) Encode() []byte {
	var b bytes.Buffer
	z, _ := gzip.NewWriterLevel(&b, gzip.BestCompression)
	next := 0
	for i := 0; i < len(s); i++ {
		run := 1
		for i+run < len(s) && s[i].ID < 0 && s[i+run] == s[i] {
			run++
		}
		if s[i].ID < 0 {
			fmt.Fprintf(z, "z %d %d\n", run, s[i].Size)
			i += run - 1
			continue
		}
		fmt.Fprintf(z, "c %d %d %d\n", s[i].ID-next, s[i].Size, s[i].Stored)
		next = s[i].ID + 1
	}
	_ = z.Close() // a bytes.Buffer does not fail
	return b.Bytes()
}

// DecodeShape decodes the output of Encode.
func DecodeShape(r io.Reader) (Shape, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, fmt.Errorf("reading a shape: %w", err)
	}
	var s Shape
	next := 0
	for lines := bufio.NewScanner(z); ; {
		if !lines.Scan() {
			return s, lines.Err()
		}
		var a int
		var size, stored int64
		if n, _ := fmt.Sscanf(lines.Text(), "z %d %d", &a, &size); n == 2 {
			for range min(a, maxReads) {
				s = append(s, Chunk{-1, size, 0})
			}
			continue
		}
		if _, err := fmt.Sscanf(lines.Text(), "c %d %d %d", &a, &size, &stored); err != nil {
			return nil, fmt.Errorf("reading a shape, chunk %d: %w", len(s), err)
		}
		s = append(s, Chunk{next + a, size, stored})
		next += a + 1
	}
}
