package pack

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"

	"cairn/blob"
	"cairn/internal/columns"
	"cairn/store/chunkfile"
)

const (
	mapMagic = "cairnpkm"
	mapHead  = 56
	// perChunk and mapRest limit the bytes of a map's table, as stored and decompressed, by the chunks of the image. A
	// usual chunk takes 4 to 8.
	perChunk = 64
	mapRest  = 64 << 10
)

// Map says in which packs the chunks of an image lie. It is immutable.
type Map struct {
	index  *blob.Index
	chunks *blob.Table
	packs  []Pack
	places []place // of each chunk of the index, at the first chunk with its digest
}

// place is a Place in 12 bytes. A size of 0 means that the chunk is in no pack.
type place struct{ pack, offset, size uint32 }

// NewMap returns the map of the image of x. find returns where a chunk lies, or false if it is in no pack.
func NewMap(x *blob.Index, find func(d blob.Digest) (at Place, ok bool)) (*Map, error) {
	m := &Map{index: x, chunks: blob.NewTable(x), places: make([]place, x.Len())}
	numbers := map[blob.Digest]int{}
	for i, c := range m.distinct() {
		at, ok := find(c.Digest)
		if !ok {
			continue
		}
		n, known := numbers[at.Pack.ID]
		if !known {
			n = len(m.packs)
			numbers[at.Pack.ID] = n
			m.packs = append(m.packs, at.Pack)
		}
		if at.Pack != m.packs[n] || checkPack(at.Pack.Size) != nil || checkPlace(at, c.Size) != nil {
			return nil, fmt.Errorf("mapping chunk %v: there is no chunk of %d bytes at %d of the %d bytes of pack %s",
				c.Digest, at.Size, at.Offset, at.Pack.Size, at.Pack.Name())
		}
		m.places[i] = place{uint32(n), uint32(at.Offset), uint32(at.Size)}
	}
	return m, nil
}

// distinct yields the first chunk with each digest, in the order of the image.
func (m *Map) distinct() func(yield func(int, blob.Chunk) bool) {
	return func(yield func(int, blob.Chunk) bool) {
		for i, c := range m.index.All() {
			if m.chunks.Find(c.Digest) == i && !yield(i, c) {
				return
			}
		}
	}
}

func checkPack(size int64) error {
	if size < headSize+1+rowSize+footerSize || size > MaxFile {
		return fmt.Errorf("a pack of %d bytes", size)
	}
	return nil
}

// checkPlace refuses a place that cannot be that of a chunk of a given size.
func checkPlace(at Place, chunk int64) error {
	end := at.Pack.Size - rowSize - footerSize
	if at.Size < 1 || at.Size > chunkfile.Limit(int(chunk)) || at.Offset < headSize || at.Size > end || at.Offset > end-at.Size {
		return fmt.Errorf("%d bytes at %d of a pack of %d bytes for a chunk of %d bytes", at.Size, at.Offset, at.Pack.Size, chunk)
	}
	return nil
}

// Packs returns the packs in the order of the first chunks that they have. The caller must not modify them.
func (m *Map) Packs() []Pack { return m.packs }

// Index returns the index of the map's image.
func (m *Map) Index() *blob.Index { return m.index }

// Memory returns about how many bytes of memory the map takes, without its index.
func (m *Map) Memory() int64 {
	const perChunk, perPack = 12 + 8, 40 // the table takes 4 to 12
	return perChunk*int64(len(m.places)) + perPack*int64(len(m.packs))
}

// Find returns where a chunk lies. It is false if the chunk is in no pack, or not in the image.
func (m *Map) Find(d blob.Digest) (at Place, ok bool) {
	i := m.chunks.Find(d)
	if i < 0 || m.places[i].size == 0 {
		return Place{}, false
	}
	p := m.places[i]
	return Place{m.packs[p.pack], int64(p.offset), int64(p.size)}, true
}

// Encode returns the map in its file format.
func (m *Map) Encode() ([]byte, error) {
	table, err := columns.Compress(m.appendTable(nil))
	if err != nil {
		return nil, err
	}
	digest := m.index.Digest()
	b := append(make([]byte, 0, mapHead+len(table)+sha256.Size), mapMagic...)
	b = binary.LittleEndian.AppendUint32(b, version)
	b = binary.LittleEndian.AppendUint32(b, uint32(m.index.Algorithm()))
	b = append(b, digest[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(table)))
	b = append(b, table...)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...), nil
}

func (m *Map) appendTable(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(m.packs)))
	for _, p := range m.packs {
		b = append(b, p.ID[:]...)
	}
	for _, p := range m.packs {
		b = binary.AppendUvarint(b, uint64(p.Size))
	}
	last := int64(0) // number of the pack, from 1 on; 0 is no pack
	for i := range m.distinct() {
		number := int64(0)
		if m.places[i].size > 0 {
			number = int64(m.places[i].pack) + 1
		}
		b = binary.AppendVarint(b, number-last)
		last = number
	}
	ends := newEnds(len(m.packs))
	for i := range m.packed() {
		p := m.places[i]
		b = binary.AppendVarint(b, int64(p.offset)-ends[p.pack])
		ends[p.pack] = int64(p.offset) + int64(p.size)
	}
	for i := range m.packed() {
		b = binary.AppendUvarint(b, uint64(m.places[i].size))
	}
	return b
}

// packed yields the distinct chunks that are in packs.
func (m *Map) packed() func(yield func(int, blob.Chunk) bool) {
	return func(yield func(int, blob.Chunk) bool) {
		for i, c := range m.distinct() {
			if m.places[i].size > 0 && !yield(i, c) {
				return
			}
		}
	}
}

// newEnds returns the offsets at which the first chunk of each of n packs is expected.
func newEnds(n int) []int64 {
	ends := make([]int64, n)
	for i := range ends {
		ends[i] = headSize
	}
	return ends
}

// MaxMapSize returns the size in bytes of the largest map of an image with so many chunks.
func MaxMapSize(chunks int) int64 { return mapHead + perChunk*int64(chunks) + mapRest + sha256.Size }

// DecodeMap reads the map of the image of x to its end. An error about the content wraps ErrInvalid; any other comes
// from r.
func DecodeMap(r io.Reader, x *blob.Index) (*Map, error) {
	head := make([]byte, mapHead)
	switch n, err := io.ReadFull(r, head); {
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		return nil, fmt.Errorf("%w: its map ends after %d bytes", ErrInvalid, n)
	case err != nil:
		return nil, err
	}
	table, err := checkMapHead(head, x)
	if err != nil {
		return nil, err
	}
	var rest bytes.Buffer // grows with the bytes that arrive
	switch n, err := io.Copy(&rest, io.LimitReader(r, table+sha256.Size+1)); {
	case err != nil:
		return nil, err
	case n != table+sha256.Size:
		return nil, fmt.Errorf("%w: the table of its map has %d bytes, not %d", ErrInvalid, n-sha256.Size, table)
	}
	hash := sha256.New()
	hash.Write(head)
	hash.Write(rest.Bytes()[:table])
	if !bytes.Equal(hash.Sum(nil), rest.Bytes()[table:]) {
		return nil, fmt.Errorf("%w: its map is damaged (the checksum is wrong)", ErrInvalid)
	}
	m := &Map{index: x, chunks: blob.NewTable(x)}
	if err := columns.Read(rest.Bytes()[:table], perChunk*int64(x.Len())+mapRest, m.decodeTable); err != nil {
		return nil, fmt.Errorf("%w: the table of its map: %w", ErrInvalid, err)
	}
	return m, nil
}

// checkMapHead checks the head of a map, and returns the size of its table.
func checkMapHead(b []byte, x *blob.Index) (table int64, err error) {
	if string(b[:8]) != mapMagic {
		return 0, fmt.Errorf("%w: not a map of packs", ErrInvalid)
	}
	v, algorithm := binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:])
	size, limit := binary.LittleEndian.Uint64(b[48:]), uint64(MaxMapSize(x.Len())-mapHead-sha256.Size)
	switch {
	case v != version:
		return 0, fmt.Errorf("%w: the version of its map is %d, and %d is known", ErrInvalid, v, version)
	case blob.Digest(b[16:48]) != x.Digest() || algorithm != uint32(x.Algorithm()):
		return 0, fmt.Errorf("%w: its map is for the image of another index", ErrInvalid)
	case size > limit:
		return 0, fmt.Errorf("%w: the table of its map has %d bytes, and %d are the limit", ErrInvalid, size, limit)
	}
	return int64(size), nil
}

func (m *Map) decodeTable(c *columns.Reader) {
	m.decodePacks(c)
	m.places = make([]place, m.index.Len())
	m.decodeNumbers(c)
	ends := newEnds(len(m.packs))
	m.decodeExtents(c, ends)
}

// decodePacks decodes the packs, which are at most as many as the chunks.
func (m *Map) decodePacks(c *columns.Reader) {
	n := c.Uvarint(uint64(m.index.Len()))
	seen := map[blob.Digest]bool{}
	for i := uint64(0); i < n && c.Err() == nil; i++ {
		var p Pack
		c.Bytes(p.ID[:])
		if seen[p.ID] {
			c.Fail("a pack comes twice")
		}
		seen[p.ID] = true
		m.packs = append(m.packs, p)
	}
	for i := range m.packs {
		m.packs[i].Size = int64(c.Uvarint(MaxFile))
		if err := checkPack(m.packs[i].Size); err != nil {
			c.Fail("%w", err)
		}
	}
}

// decodeNumbers decodes the pack of each distinct chunk. It sets a size of 1 for those in packs.
func (m *Map) decodeNumbers(c *columns.Reader) {
	last, used := int64(0), int64(0) // numbers from 1 on
	for i := range m.distinct() {
		number := last + c.Varint()
		switch {
		case c.Err() != nil:
			return
		case number < 0 || number > int64(len(m.packs)):
			c.Fail("pack %d of %d", number, len(m.packs))
			return
		case number > used+1:
			c.Fail("the packs are not in the order of their first chunks")
			return
		case number > 0:
			m.places[i] = place{pack: uint32(number - 1), size: 1}
		}
		last, used = number, max(used, number)
	}
	if used != int64(len(m.packs)) {
		c.Fail("%d packs without a chunk", int64(len(m.packs))-used)
	}
}

// decodeExtents decodes offsets and sizes. ends are the offsets at which the next chunk of each pack is expected. An
// offset counts from there, and the size before it is in a later column, so offsets are kept relative until then.
func (m *Map) decodeExtents(c *columns.Reader, ends []int64) {
	var steps []int64
	for range m.packed() {
		steps = append(steps, c.Varint())
		if c.Err() != nil {
			return
		}
	}
	n := 0
	for i, chunk := range m.packed() {
		p := &m.places[i]
		step := steps[n]
		n++
		if step < -MaxFile || step > MaxFile {
			c.Fail("an offset out of range")
		}
		at := Place{m.packs[p.pack], ends[p.pack] + step, int64(c.Uvarint(MaxFile))}
		if err := checkPlace(at, chunk.Size); err != nil {
			c.Fail("%w", err)
		}
		if c.Err() != nil {
			return
		}
		p.offset, p.size = uint32(at.Offset), uint32(at.Size)
		ends[p.pack] = at.End()
	}
}
