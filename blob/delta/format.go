package delta

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"

	"cairn/blob"
	"cairn/internal/columns"
)

const (
	magic     = "cairndlt"
	version   = 1
	fixedSize = 96
	// maxTable limits the stored bytes of a table. It is enough for 30 GiB of new chunks at the default
	// sizes.
	maxTable = 32 << 20
	// plainPerChunk and plainRest limit the decompressed bytes of a table, by the chunks of the new image.
	// A usual row has 20 to 80 bytes.
	plainPerChunk = 256
	plainRest     = 64 << 10
	maxStored     = 1 << 28 // bytes of a chunk's file
)

// MaxHeadSize limits the bytes of head and table, which precede the first payload.
const MaxHeadSize = fixedSize + maxTable + sha256.Size

func maxPlain(chunks int) int64 { return plainPerChunk*int64(chunks) + plainRest }

// Encode returns head and table of a delta's file. The payloads follow them in the file, in the order of
// the rows. The rows are in the order of their chunks; their Offsets are ignored.
func Encode(h Head, rows []Row) ([]byte, error) {
	plain := appendTable(nil, rows)
	if limit := maxPlain(len(rows)); int64(len(plain)) > limit {
		return nil, fmt.Errorf("the table of %d chunks has %d bytes, and %d are the limit", len(rows), len(plain), limit)
	}
	table, err := columns.Compress(plain)
	if err != nil {
		return nil, err
	}
	if len(table) > maxTable {
		return nil, fmt.Errorf("the table of %d chunks takes %d bytes, and %d are the limit", len(rows), len(table), maxTable)
	}
	b := append(appendHead(nil, h, len(table)), table...)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...), nil
}

func appendHead(b []byte, h Head, table int) []byte {
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint32(b, version)
	b = binary.LittleEndian.AppendUint32(b, uint32(h.Algorithm))
	b = append(b, h.Old[:]...)
	b = append(b, h.New[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.OldSize))
	return binary.LittleEndian.AppendUint64(b, uint64(table))
}

// appendTable appends the columns of the table: similar numbers stand together, so they compress well.
func appendTable(b []byte, rows []Row) []byte {
	b = binary.AppendUvarint(b, uint64(len(rows)))
	next := 0
	for _, r := range rows {
		b = binary.AppendUvarint(b, uint64(r.Chunk-next))
		next = r.Chunk + 1
	}
	for _, r := range rows {
		b = append(b, byte(r.Kind))
	}
	for _, r := range rows {
		b = binary.AppendUvarint(b, uint64(r.Size))
	}
	for _, r := range rows {
		b = binary.AppendUvarint(b, uint64(r.Stored-r.Size))
	}
	for _, r := range rows {
		b = binary.AppendUvarint(b, uint64(len(r.Ranges)))
	}
	var end int64
	for _, r := range rows {
		for _, r := range r.Ranges {
			b = binary.AppendVarint(b, r.Offset-end)
			end = r.End()
		}
	}
	for _, r := range rows {
		for _, r := range r.Ranges {
			b = binary.AppendUvarint(b, uint64(r.Size))
		}
	}
	return b
}

// FirstBytes is enough of a delta's file for TableEnd.
const FirstBytes = fixedSize

// TableEnd returns the size of head and table of the file with these first bytes, at least FirstBytes of
// them.
func TableEnd(first []byte) (int64, error) {
	_, table, err := decodeHead(first)
	return fixedSize + table + sha256.Size, err
}

// Decode reads head and table of a delta's file, and no byte more. The delta must be for the image of x,
// whose number of chunks limits the memory. An error about the content wraps ErrInvalid; any other comes
// from r.
func Decode(r io.Reader, x *blob.Index) (*Delta, error) {
	first := make([]byte, fixedSize)
	if n, err := io.ReadFull(r, first); err == io.EOF || err == io.ErrUnexpectedEOF {
		return nil, fmt.Errorf("%w: it ends after %d bytes", ErrInvalid, n)
	} else if err != nil {
		return nil, err
	}
	h, size, err := decodeHead(first)
	if err != nil {
		return nil, err
	}
	if h.New != x.Digest() || h.Algorithm != x.Algorithm() {
		return nil, fmt.Errorf("%w: it is for the image of another index", ErrInvalid)
	}
	rest := bytes.NewBuffer(make([]byte, 0, min(size+sha256.Size, 64<<10)))
	switch n, err := io.Copy(rest, io.LimitReader(r, size+sha256.Size)); {
	case err != nil:
		return nil, err
	case n < size+sha256.Size:
		return nil, fmt.Errorf("%w: its table ends after %d of %d bytes", ErrInvalid, n, size+sha256.Size)
	}
	table, sum := rest.Bytes()[:size], rest.Bytes()[size:]
	hash := sha256.New()
	hash.Write(first)
	hash.Write(table)
	if !bytes.Equal(hash.Sum(nil), sum) {
		return nil, fmt.Errorf("%w: damaged (the checksum of its table is wrong)", ErrInvalid)
	}
	d := &Delta{Head: h, start: fixedSize + size + sha256.Size}
	if err := d.decodeTable(table, x); err != nil {
		return nil, err
	}
	return d, nil
}

func decodeHead(b []byte) (h Head, table int64, err error) {
	if len(b) < fixedSize || string(b[:8]) != magic {
		return h, 0, fmt.Errorf("%w: not a delta", ErrInvalid)
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != version {
		return h, 0, fmt.Errorf("%w: its version is %d, and %d is known", ErrInvalid, v, version)
	}
	algorithm, size, stored := binary.LittleEndian.Uint32(b[12:]), binary.LittleEndian.Uint64(b[80:]), binary.LittleEndian.Uint64(b[88:])
	switch {
	case algorithm > uint32(blob.SHA256):
		return h, 0, fmt.Errorf("%w: unknown digest algorithm %d", ErrInvalid, algorithm)
	case size > 1<<62:
		return h, 0, fmt.Errorf("%w: an old image of %d bytes", ErrInvalid, size)
	case stored > maxTable:
		return h, 0, fmt.Errorf("%w: a table of %d bytes, and %d are the limit", ErrInvalid, stored, maxTable)
	}
	h = Head{blob.Algorithm(algorithm), blob.Digest(b[16:48]), blob.Digest(b[48:80]), int64(size)}
	return h, int64(stored), nil
}

func (d *Delta) decodeTable(table []byte, x *blob.Index) error {
	if err := columns.Read(table, maxPlain(x.Len()), func(c *columns.Reader) { d.decodeColumns(c, x) }); err != nil {
		return fmt.Errorf("%w: its table: %w", ErrInvalid, err)
	}
	return nil
}

func (d *Delta) decodeColumns(c *columns.Reader, x *blob.Index) {
	n := c.Uvarint(uint64(x.Len()))
	next := 0
	for i := uint64(0); i < n && c.Err() == nil; i++ {
		chunk := next + int(c.Uvarint(blob.MaxChunks))
		switch {
		case chunk >= x.Len():
			c.Fail("chunk %d of an image of %d chunks", chunk, x.Len())
		case x.At(chunk).Size > MaxChunk:
			c.Fail("chunk %d has %d bytes, and %d are the limit", chunk, x.At(chunk).Size, MaxChunk)
		}
		d.rows = append(d.rows, row{chunk: uint32(chunk)})
		next = chunk + 1
	}
	for i := range d.rows {
		d.rows[i].kind = Kind(c.Byte())
	}
	var end int64
	for i := range d.rows {
		size := c.Uvarint(MaxPayload)
		if size == 0 {
			c.Fail("an empty payload")
		}
		d.rows[i].stored = uint32(size) // until the next column adds what the payload saves
		end += int64(size)
		d.rows[i].payloadEnd = end
	}
	for i := range d.rows {
		saved := c.Uvarint(maxStored)
		if saved == 0 {
			c.Fail("a payload that saves nothing")
		}
		d.rows[i].stored += uint32(saved)
	}
	d.decodeRanges(c)
}

func (d *Delta) decodeRanges(c *columns.Reader) {
	var total uint64
	for i := range d.rows {
		total += c.Uvarint(MaxRanges)
		d.rows[i].rangeEnd = uint32(total)
	}
	for range total {
		if c.Err() != nil {
			return
		}
		d.ranges = append(d.ranges, Range{Offset: c.Varint()})
	}
	first, end, read := uint32(0), int64(0), int64(0)
	for _, r := range d.rows {
		var reference int64
		for i := first; i < r.rangeEnd && c.Err() == nil; i++ {
			g := &d.ranges[i]
			g.Offset += end
			g.Size = int64(c.Uvarint(MaxReference))
			if g.Size == 0 || g.Offset < 0 || g.Offset > d.OldSize || g.Size > d.OldSize-g.Offset {
				c.Fail("a range of %d bytes at %d of %d", g.Size, g.Offset, d.OldSize)
			}
			end = g.End()
			reference += g.Size
		}
		first = r.rangeEnd
		read += reference
		if reference > MaxReference {
			c.Fail("a reference of %d bytes, and %d are the limit", reference, MaxReference)
		}
	}
	if hi, lo := bits.Mul64(uint64(d.OldSize), MaxReferences); hi == 0 && uint64(read) > lo {
		c.Fail("references of %d bytes for an old image of %d bytes", read, d.OldSize)
	}
}
