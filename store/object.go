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
	// Suspicion is the error to return when Plain is not the chunk; nil unless a header contradicted the object.
	Suspicion error

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
	into.Suspicion, err = splitSuspicion(err)
	if err == nil {
		into.Stored = stored
		err = c.open(int(size), into)
	}
	if _, wrong := errors.AsType[content](err); wrong && into.Suspicion != nil && len(stored) > 0 {
		return into.Suspicion
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
	if errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("reading %v: %w", c.r, err)
	}
	if err != nil {
		return content{err}
	}
	return nil
}

func grown(p []byte, size int) []byte {
	if cap(p) < size {
		return make([]byte, size)
	}
	return p[:size]
}

// unpackAll is unpack of a chunk whose size nobody knows, in dst's memory if that is large enough. Memory is
// bounded by the largest chunk there may be.
func (u unpacker) unpackAll(dst, packed []byte) ([]byte, error) {
	size, told, err := toldSize(packed)
	switch {
	case err != nil:
		return dst, err
	case !told:
		return u.unpackUntold(dst, packed)
	case size == 0 || size > blob.MaxChunkSize:
		return dst, fmt.Errorf("it says to hold %d bytes, which no chunk has", size)
	}
	dst = grown(dst, int(size))
	return dst, u.unpack(dst, packed)
}

// toldSize is how many bytes a compressed chunk says to hold. Only zstd need not tell.
func toldSize(packed []byte) (size uint64, told bool, err error) {
	switch {
	case bytes.HasPrefix(packed, []byte(zstdMagic)):
		var head zstd.Header
		if err := head.Decode(packed); err != nil {
			return 0, false, fmt.Errorf("decompressing: %w", err)
		}
		return head.FrameContentSize, head.HasFCS, nil
	case bytes.HasPrefix(packed, []byte(gzipMagic)) && len(packed) >= 18: // RFC 1952: the last four bytes
		return uint64(binary.LittleEndian.Uint32(packed[len(packed)-4:])), true, nil
	case bytes.HasPrefix(packed, []byte(xzMagic)):
		size, ok := xzSize(packed)
		if !ok {
			return 0, false, errors.New("xz: its end is damaged")
		}
		return size, true, nil
	case len(packed) == 0:
		return 0, false, errEmpty
	}
	return 0, false, errors.New("it is neither zstd, xz nor gzip")
}

// xzSize adds up what the index at the end of an xz stream says of its blocks (The .xz File Format, 2.1.2 and 4).
func xzSize(packed []byte) (size uint64, ok bool) {
	const footer = 12
	if len(packed) < 2*footer || !bytes.HasSuffix(packed, []byte("YZ")) {
		return 0, false
	}
	end := len(packed) - footer
	length := 4 * (int64(binary.LittleEndian.Uint32(packed[end+4:])) + 1)
	if length > int64(end) {
		return 0, false
	}
	index := bytes.NewReader(packed[int64(end)-length : end])
	mark, _ := index.ReadByte()
	blocks, err := binary.ReadUvarint(index)
	for ok = mark == 0 && err == nil; ok && blocks > 0; blocks-- {
		_, err1 := binary.ReadUvarint(index) // as compressed
		n, err2 := binary.ReadUvarint(index)
		ok = err1 == nil && err2 == nil && n <= blob.MaxChunkSize
		size += n
	}
	return size, ok
}

// unpackUntold is unpackAll of a zstd frame that does not tell, such as casync's.
func (u unpacker) unpackUntold(dst, packed []byte) ([]byte, error) {
	if err := oneFrame(packed); err != nil {
		return dst, err
	}
	guess := max(256<<10, min(4*len(packed), blob.MaxChunkSize)) // room for most chunks
	dst = grown(dst, max(guess, cap(dst)))
	n, err := u.zstd.decode(dst, packed)
	if err != nil || n == 0 {
		return unpackStream(dst, packed)
	}
	return dst[:n], nil
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
