package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"

	"cairn/blob"
)

// ChunkObject reads the name of an object as a store has it for a chunk: the chunk's digest, and whether the
// object is compressed. Any other name is none of a chunk's.
func ChunkObject(name string) (d blob.Digest, packed, ok bool) {
	plain, packed := strings.CutSuffix(name, packedSuffix)
	dir, hex, cut := strings.Cut(plain, "/")
	if !cut || len(dir) != 4 || !strings.HasPrefix(hex, dir) {
		return blob.Digest{}, false, false
	}
	d, err := blob.ParseDigest(hex)
	return d, packed, err == nil
}

// ObjectName is the name that a store has for a chunk, compressed or as it is.
func ObjectName(d blob.Digest, packed bool) string {
	if packed {
		return packedName(d)
	}
	return plainName(d)
}

// Raw is a chunk as it was read from a store. Its memory is used again by the next Load into it.
type Raw struct {
	Packed bool   // Stored is compressed
	Stored []byte // the object
	Plain  []byte // what it unpacks to; not proven

	unpacked []byte // memory for Plain
}

// Load reads one object of a chunk and unpacks it; size is that of the chunk, or 0 if it is not known. Without
// a size, memory is bounded by the largest chunk there may be. The caller has to hash Plain. Absence is
// ErrNotFound; what cannot be unpacked is a *CorruptError.
func (c *Chunks) Load(ctx context.Context, d blob.Digest, packed bool, size int64, into *Raw) error {
	into.Packed = packed
	most := size
	if most == 0 {
		most = blob.MaxChunkSize
	}
	limit := most
	if packed {
		limit = packedLimit(int(most))
	}
	stored, err := c.r.Read(ctx, ObjectName(d, packed), into.Stored[:0], limit)
	if err == nil {
		into.Stored = stored
		err = c.open(int(size), into)
	}
	if err != nil {
		return c.explain(d, err)
	}
	return nil
}

// open sets Plain by what was read.
func (c *Chunks) open(size int, into *Raw) (err error) {
	if !into.Packed {
		into.Plain = into.Stored
		if len(into.Plain) == 0 || size > 0 && len(into.Plain) != size {
			return content{sizeError(len(into.Plain), size)}
		}
		return nil
	}
	if size > 0 {
		into.unpacked = grown(into.unpacked, size)
		err = c.unpacker.unpack(into.unpacked, into.Stored)
	} else {
		into.unpacked, err = c.unpacker.unpackAll(into.unpacked, into.Stored)
	}
	into.Plain = into.unpacked
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return content{err}
	}
	return err
}

func grown(p []byte, size int) []byte {
	if cap(p) < size {
		return make([]byte, size)
	}
	return p[:size]
}

// unpackAll is unpack of a chunk whose size nobody knows, in dst's memory if that is large enough.
func (u unpacker) unpackAll(dst, packed []byte) ([]byte, error) {
	var head zstd.Header
	if !bytes.HasPrefix(packed, []byte(zstdMagic)) {
		return dst, u.unpack(nil, packed)
	}
	if err := head.Decode(packed); err != nil {
		return dst, fmt.Errorf("decompressing: %w", err)
	}
	if head.HasFCS {
		if n := head.FrameContentSize; n == 0 || n > blob.MaxChunkSize {
			return dst, fmt.Errorf("it holds %d bytes, which no chunk has", n)
		}
		dst = grown(dst, int(head.FrameContentSize))
		return dst, u.unzstd(dst, packed)
	}
	guess := max(256<<10, 4*len(packed)) // room for most chunks
	out, err := u.zstd.DecodeAll(packed, grown(dst, max(guess, cap(dst)))[:0])
	if err != nil || len(out) == 0 {
		return unpackStream(dst, packed)
	}
	return out, nil
}

// unpackStream is unpackAll in small steps, as nothing tells how much it will be.
func unpackStream(dst, packed []byte) ([]byte, error) {
	d, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(blob.MaxChunkSize))
	if err != nil {
		return dst, fmt.Errorf("decompressing: %w", err)
	}
	defer d.Close()
	out := bytes.NewBuffer(dst[:0])
	n, err := io.Copy(out, io.LimitReader(d, blob.MaxChunkSize+1))
	switch {
	case err != nil:
		return dst, fmt.Errorf("decompressing: %w", err)
	case n == 0 || n > blob.MaxChunkSize:
		return dst, fmt.Errorf("it holds %d bytes or more, which no chunk has", n)
	}
	return out.Bytes(), nil
}

// oneFrame says whether data is one zstd frame and nothing else, which is all that casync reads.
func oneFrame(data []byte) bool {
	const blockHead, checksum = 3, 4
	const last, kinds, rle, sizes = 1, 3, 1, 3 // of the three bytes: a bit, two bits, the rest
	var head zstd.Header
	if head.Decode(data) != nil || head.Skippable || head.DictionaryID != 0 {
		return false
	}
	for at := head.HeaderSize; at+blockHead <= len(data); {
		block := uint32(data[at]) | uint32(binary.LittleEndian.Uint16(data[at+1:]))<<8
		at += blockHead + int(block>>sizes)
		if block>>1&kinds == rle {
			at += 1 - int(block>>sizes)
		}
		if block&last != 0 {
			if head.HasCheckSum {
				at += checksum
			}
			return at == len(data)
		}
	}
	return false
}
