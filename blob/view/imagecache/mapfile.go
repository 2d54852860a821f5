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

// The map says which chunks of an image are in its file. It has two slots that are written in turn, so that a
// torn one leaves the other; docs/format.md has every byte.
const (
	mapMagic   = "cairnmap"
	mapVersion = 1
	mapHead    = 80 // bytes before the bits
	mapAlign   = 4096
	flagClean  = 1
)

// mapState is what a slot says.
type mapState struct {
	sequence uint64
	clean    bool   // the file was closed: it is as the map says if it was not touched since
	modified int64  // the file's time of modification then, in nanoseconds; 0 unless clean
	bits     []byte // chunks that are in the file
	proven   []byte // those of them that need not be proven again; none unless clean
}

// mapLayout is for which image a map is.
type mapLayout struct {
	digest blob.Digest // of the index
	chunks int
	size   int64
}

func layoutOf(x *blob.Index) mapLayout { return mapLayout{x.Digest(), x.Len(), x.Size()} }

func (l mapLayout) bitBytes() int { return (l.chunks + 7) / 8 }

// slotSize is the distance of the slots.
func (l mapLayout) slotSize() int64 {
	return int64(mapHead+2*l.bitBytes()+sha256.Size+mapAlign-1) / mapAlign * mapAlign
}

func (l mapLayout) encode(s mapState) []byte {
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

// errMap says that a slot is not whole, of another version or for another image.
var errMap = errors.New("not a map of this image")

// decode reads a slot, which may be longer than what is in it, and takes one spelling only.
func (l mapLayout) decode(p []byte) (mapState, error) {
	middle, n := mapHead+l.bitBytes(), mapHead+2*l.bitBytes()
	if len(p) < n+sha256.Size {
		return mapState{}, errMap
	}
	u64 := func(at int) uint64 { return binary.LittleEndian.Uint64(p[at:]) }
	s := mapState{sequence: u64(16), modified: int64(u64(72)), bits: bytes.Clone(p[mapHead:middle])}
	s.proven = bytes.Clone(p[middle:n])
	s.clean = p[12] == flagClean
	again := l.encode(s)
	if !bytes.Equal(again, p[:n+sha256.Size]) || spare(s.bits, l.chunks) || spare(s.proven, l.chunks) {
		return mapState{}, errMap
	}
	return s, nil
}

// spare reports whether bits behind the last chunk's are set.
func spare(bits []byte, chunks int) bool {
	return chunks%8 != 0 && bits[len(bits)-1]>>(chunks%8) != 0
}

// newest returns the state that was written last, as far as a slot of the file is whole.
func (l mapLayout) newest(file []byte) (mapState, error) {
	best, err := mapState{}, errMap
	for _, at := range []int64{0, l.slotSize()} {
		if int64(len(file)) <= at {
			break
		}
		s, bad := l.decode(file[at:min(int64(len(file)), at+l.slotSize())])
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
	sequence uint64 // of the slot that was written last
}

// load returns the state that was saved last, or an empty one if no slot is whole.
func (m *mapFile) load() (mapState, error) {
	file, err := io.ReadAll(io.NewSectionReader(m.file, 0, 2*m.layout.slotSize()))
	if err != nil {
		return mapState{}, fmt.Errorf("reading its map: %w", err)
	}
	s, _ := m.layout.newest(file)
	m.sequence = s.sequence
	return s, nil
}

// save writes the next slot, durably.
func (m *mapFile) save(s mapState) error {
	s.sequence = m.sequence + 1
	at := int64(s.sequence%2) * m.layout.slotSize()
	if _, err := m.file.WriteAt(m.layout.encode(s), at); err != nil {
		return err
	}
	if err := m.file.flush(); err != nil {
		return err
	}
	m.sequence = s.sequence
	return nil
}
