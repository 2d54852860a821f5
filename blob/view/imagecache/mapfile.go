package imagecache

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"cairn/blob"
)

// The map lists the chunks in an image's file. It has two slots, which are written in turn, so a torn write leaves
// the other slot valid. docs/format.md specifies every byte.
const (
	mapMagic   = "cairnmap"
	mapVersion = 1
	mapHeader  = 80 // bytes before the bits
	mapAlign   = 4096
	flagClean  = 1
)

// mapState is the content of a slot.
type mapState struct {
	sequence uint64
	clean    bool   // the file was closed; the map is valid if the file was not modified since
	modified int64  // the file's modification time at its close, in nanoseconds since 1970; 0 unless clean
	bits     []byte // chunks that the file holds
	proven   []byte // chunks that need no verification; none unless clean
}

// mapLayout identifies the image of a map.
type mapLayout struct {
	digest blob.Digest // of the index
	chunks int
	size   int64
}

func layoutOf(x *blob.Index) mapLayout { return mapLayout{x.Digest(), x.Len(), x.Size()} }

func (l mapLayout) bitBytes() int { return (l.chunks + 7) / 8 }

// slotSize returns the distance of the two slots in bytes.
func (l mapLayout) slotSize() int64 {
	return int64(mapHeader+2*l.bitBytes()+sha256.Size+mapAlign-1) / mapAlign * mapAlign
}

func (l mapLayout) encodeSlot(s mapState) []byte {
	p := make([]byte, 0, l.slotSize())
	p = append(p, mapMagic...)
	p = binary.LittleEndian.AppendUint32(p, mapVersion)
	flags := uint32(0)
	if s.clean {
		flags = flagClean
	}
	p = binary.LittleEndian.AppendUint32(p, flags)
	p = binary.LittleEndian.AppendUint64(p, s.sequence)
	p = append(p, l.digest[:]...)
	for _, v := range []uint64{uint64(l.chunks), uint64(l.size), uint64(s.modified)} {
		p = binary.LittleEndian.AppendUint64(p, v)
	}
	p = append(p, s.bits...)
	if s.proven == nil {
		s.proven = make([]byte, l.bitBytes())
	}
	p = append(p, s.proven...)
	sum := sha256.Sum256(p)
	return append(p, sum[:]...)
}

// errMap means that a slot is damaged, has another version or belongs to another image.
var errMap = errors.New("not a map of this image")

// decodeSlot decodes a slot, which may be followed by other bytes. It accepts only the encoding of encodeSlot.
func (l mapLayout) decodeSlot(p []byte) (mapState, error) {
	middle, n := mapHeader+l.bitBytes(), mapHeader+2*l.bitBytes()
	if len(p) < n+sha256.Size {
		return mapState{}, errMap
	}
	u64 := func(at int) uint64 { return binary.LittleEndian.Uint64(p[at:]) }
	s := mapState{sequence: u64(16), modified: int64(u64(72)), bits: bytes.Clone(p[mapHeader:middle])}
	s.proven = bytes.Clone(p[middle:n])
	s.clean = p[12] == flagClean
	again := l.encodeSlot(s)
	if !bytes.Equal(again, p[:n+sha256.Size]) || hasSpareBits(s.bits, l.chunks) || hasSpareBits(s.proven, l.chunks) {
		return mapState{}, errMap
	}
	return s, nil
}

// hasSpareBits reports whether bits after those of the chunks are set.
func hasSpareBits(bits []byte, chunks int) bool {
	return chunks%8 != 0 && bits[len(bits)-1]>>(chunks%8) != 0
}

// latestState returns the state of the last written valid slot.
func (l mapLayout) latestState(file []byte) (mapState, error) {
	best, err := mapState{}, errMap
	for _, at := range []int64{0, l.slotSize()} {
		if int64(len(file)) <= at {
			break
		}
		s, bad := l.decodeSlot(file[at:min(int64(len(file)), at+l.slotSize())])
		if bad == nil && (err != nil || s.sequence > best.sequence) {
			best, err = s, nil
		}
	}
	return best, err
}

// mapFile is the map of an image on disk.
type mapFile struct {
	layout   mapLayout
	file     *sparse
	sequence uint64 // of the last written slot
}

// readState returns the last written state, or an empty one if no slot is valid.
func (m *mapFile) readState() (mapState, error) {
	file, err := io.ReadAll(io.NewSectionReader(m.file, 0, 2*m.layout.slotSize()))
	if err != nil {
		return mapState{}, fmt.Errorf("reading its map: %w", err)
	}
	s, _ := m.layout.latestState(file)
	m.sequence = s.sequence
	return s, nil
}

// writeState writes the next slot and flushes it.
func (m *mapFile) writeState(s mapState) error {
	s.sequence = m.sequence + 1
	at := int64(s.sequence%2) * m.layout.slotSize()
	if _, err := m.file.WriteAt(m.layout.encodeSlot(s), at); err != nil {
		return err
	}
	if err := m.file.flushData(); err != nil {
		return err
	}
	m.sequence = s.sequence
	return nil
}
